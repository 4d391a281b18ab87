"""BatchNorms that share their statistics over processes against one BatchNorm on the whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fishnet.models.shared_norm import SharedBatchNorm2d


def work(rank: int, folder: str) -> None:
    """Normalize half of a batch in one of two processes, and keep what came out."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    given = torch.load(f"{folder}/given.pt")
    norm = SharedBatchNorm2d(3)
    norm.load_state_dict(given["norm"])
    own = slice(0, given["first"]) if rank == 0 else slice(given["first"], None)
    half = given["x"][own].requires_grad_()
    y = norm(half)
    (y * given["w"][own]).sum().backward()
    found = {"y": y.detach(), "x": half.grad, "norm": norm.state_dict(), "weight": norm.weight.grad}
    torch.save(found, f"{folder}/found{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("first", "dtype"), [(1, torch.float32), (4, torch.float32), (2, torch.bfloat16)])
def test_statistics_and_gradients_are_those_of_the_whole_batch(first: int, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = nn.BatchNorm2d(3)
    nn.init.normal_(whole.weight)
    # the mean is large in comparison to the standard deviation, and one process may have no image
    x, w = (torch.randn(4, 3, 5, 6) * 3 + 70).to(dtype), torch.randn(4, 3, 5, 6).to(dtype)
    torch.save({"x": x, "w": w, "norm": whole.state_dict(), "first": first}, tmp_path / "given.pt")
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"found{rank}.pt") for rank in range(2))
    x.requires_grad_()
    y: Tensor = whole(x.float())
    (y * w.float()).sum().backward()
    exact = dtype == torch.float32
    close = {"rtol": 1e-4, "atol": 2e-5} if exact else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(torch.cat([first["y"], second["y"]]), y.detach().to(dtype), **close)
    torch.testing.assert_close(torch.cat([first["x"], second["x"]]), x.grad, **close)
    torch.testing.assert_close(first["weight"] + second["weight"], whole.weight.grad, rtol=1e-4, atol=1e-4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(first["norm"][name], value)
        torch.testing.assert_close(second["norm"][name], value)


def test_one_process_has_an_ordinary_norm() -> None:
    norm, plain = SharedBatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(norm(x), plain(x))
    assert torch.equal(norm.running_var, plain.running_var)


class Recorder(TorchDispatchMode):
    """Keep the arguments of the backward pass of BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is torch.ops.aten.native_batch_norm_backward.default:
            self.calls.append(args)
        return func(*args, **kwargs or {})


def test_kernels_of_gpus_accept_the_arguments_of_the_backward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For them, statistics that are None are an internal error if no gradient by the maps is asked for."""
    monkeypatch.setattr("fishnet.models.shared_norm.world_size", lambda: 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with Recorder() as recorder:
            SharedBatchNorm2d(3)(torch.randn(2, 3, 4, 5, requires_grad=True)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    (arguments,) = recorder.calls
    assert all(isinstance(value, Tensor) for value in arguments[:7])
