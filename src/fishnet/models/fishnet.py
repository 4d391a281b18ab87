"""FishNet: stem -> tail -> bridge -> body -> head -> score -> classes, and its variants as timm models.

Sun, Pang, Shi, Yi, Ouyang: FishNet, NeurIPS 2018, https://arxiv.org/abs/1901.03495.
TorchScript compiles this module, so annotations stay evaluated.
"""
# ruff: noqa: D102 (the docstring of a module is that of its forward)

from dataclasses import fields
from typing import TypedDict

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates, create_classifier
from timm.layers.helpers import get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models import load_pretrained as load_timm_pretrained
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from fishnet.models.blocks import Block, Device, FactoryKwargs
from fishnet.models.checkpoints.pretrained import PACKAGED, PRETRAINED
from fishnet.models.config import STAGES, VARIANTS, FishConfig, too_small
from fishnet.models.stages import Body, Bridge, Head, Stem, Tail, set_memory
from fishnet.models.timm_types import LayerGroups, ModelOptions, Pattern

TAPS = ("stem_conv", "b3", "h1", "h2", "h3")
"""Stages that timm offers as features: for each stride the deepest map."""

MODULES = {
    "stem_conv": "stem.relu",
    "stem": "stem.pool",
    **{name: f"tail.{name}" for name in ("t1", "t2", "t3")},
    "bridge": "bridge",
    **{name: f"body.{name}" for name in ("b1", "b2", "b3")},
    **{name: f"head.{name}" for name in ("h1", "h2", "h3")},
}
"""Module whose output is the output of a stage."""


class Score(nn.Module):
    """Last features: n2(w * n1(x)), a 1x1 convolution to half the channels: (N, C, H, W) -> (N, C/2, H, W)."""

    def __init__(
        self, in_channels: int, out_channels: int, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels, **dd)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(out_channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.norm1(x), inplace=True))
        return F.relu(self.norm2(x), inplace=True)


class FishNet(nn.Module):
    """A FishNet classifier and backbone: (N, in_chans, H, W) -> (N, num_classes).

    Height and width are arbitrary from `config.min_size` up, also odd or unequal. Without a classifier
    (`num_classes=0`) the output is the pooled features (N, num_features), or the map if also `global_pool=""`.
    """

    def __init__(
        self,
        config: FishConfig | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.config = config = config or FishConfig()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.min_size = config.min_size
        self.stage_info = {name: (config.strides[name], config.channels[name]) for name in STAGES}
        self.feature_info = [_feature(config, name) for name in TAPS]
        self.num_taps = len(TAPS)
        depths = [*config.tail_depths, config.bridge_depth, *config.body_depths, *config.head_depths]
        rates: list[list[float]]  # timm's annotation includes the form of one rate per block
        rates = calculate_drop_path_rates(config.drop_path_rate, depths, stagewise=True)  # type: ignore[assignment]
        self.stem = Stem(config, in_chans, **dd)
        self.tail = Tail(config, rates[0:3], **dd)
        self.bridge = Bridge(config, rates[3], **dd)
        self.body = Body(config, rates[4:7], **dd)
        self.head = Head(config, rates[7:10], **dd)
        self.score = Score(config.channels["h3"], config.score_width, **dd)
        self.num_features = config.score_width
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.head_drop = nn.Dropout(drop_rate)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialize the weights: Kaiming-normal convolutions (fan out), identity norms, a classifier near zero.

        With `zero_init_last`, the default, the last convolution of every block is zero, as in timm's ResNets: the
        network then consists of shortcuts, projections and resampling at first (Goyal et al., arXiv 1706.02677, section
        5.1).
        """
        self.apply(_init_weights)
        if self.config.zero_init_last:
            for module in self.modules():
                if isinstance(module, Block):
                    nn.init.zeros_(module.conv3.weight)

    @torch.jit.ignore
    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Return the output of every stage by name, from the stem on; `stage_info` has their strides and channels."""
        outputs: dict[str, Tensor] = {}
        modules = dict(self.named_modules())
        handles = [
            modules[path].register_forward_hook(lambda m, i, y, name=name: outputs.update({name: y}))
            for name, path in MODULES.items()
            if path in modules
        ]
        try:
            self.forward_features(x)
        finally:
            for handle in handles:
                handle.remove()
        return {name: outputs[name] for name in STAGES if name in outputs}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Return timm's layer groups from the stem to the classifier: stages if `coarse`, else blocks."""
        matcher: LayerGroups = {"stem": r"^stem"}
        for name in STAGES[2:]:
            prefix = "^" + MODULES[name].replace(".", r"\.")
            blocks, rest = rf"{prefix}\.blocks\.(\d+)", rf"{prefix}\.(?:down|up|transfer)"
            fine: list[Pattern] = [(blocks, None), (rest, (99999,)), (prefix, None)]
            matcher[name] = prefix if coarse else fine
        return matcher | {"score": r"^score"}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are exempt from weight decay in every recipe: none."""
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each stage in the backward pass: least memory, a third more time or so."""
        set_memory(self, "saver" if enable else "fast")

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for `num_classes` (0: none), and the pooling if it is given."""
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.classifier.apply(_init_weights)
        self.global_pool.train(self.training)
        self.classifier.train(self.training)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a checkpoint file of any known layout; another `num_classes` or `in_chans` is adapted as in timm."""
        from fishnet.models.checkpoints.states import is_network, read_checkpoint, whole_of

        state = read_checkpoint(checkpoint_path)
        if is_network(state):
            state, _ = whole_of(state, self.state_dict(), "classifier")
        state = checkpoint_filter_fn(state, self)
        source = {**getattr(self, "pretrained_cfg", {}), "state_dict": state, "source": ""}
        load_timm_pretrained(self, source, num_classes=self.num_classes, in_chans=self.in_chans)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove modules that the features at `indices` do not need; the last of these features becomes the final one.

        Only the classifier needs `score`: it is kept if `h3` is kept and neither head nor norm is pruned.

        Returns:
            The indices as non-negative numbers.
        """
        take_indices, last = feature_take_indices(self.num_taps, indices)
        if last == 0:
            self.stem.pool = nn.Identity()
            for name in ("tail", "bridge", "body"):
                self._drop(self, name)
        if last <= 1:
            self._drop(self, "head")
        else:
            for name in ("h2", "h3")[last - 2 :]:
                self._drop(self.head, name)
        ends_early = last < self.num_taps - 1
        if ends_early or prune_norm or prune_head:
            self._drop(self, "score")
            self.num_features = self.feature_info[last]["num_chs"]
            headless = ends_early or prune_head
            self.reset_classifier(0 if headless else self.num_classes, "" if headless else None)
        return take_indices

    @torch.jit.ignore
    def _drop(self, module: nn.Module, name: str) -> None:
        if hasattr(module, name):
            delattr(module, name)

    @torch.jit.ignore
    def _check_size(self, x: Tensor) -> None:
        if isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing():
            return
        if x.shape[-2] < self.min_size or x.shape[-1] < self.min_size:
            raise too_small(x.shape[-2], x.shape[-1], self.min_size)

    def _run(self, x: Tensor, take: list[int], last: int) -> tuple[Tensor, list[Tensor]]:
        """Return the feature with index `last` (or the last one left by pruning) and those with an index in `take`."""
        if not torch.jit.is_scripting():
            self._check_size(x)
        taps: list[Tensor] = []
        x = self.stem.convs(x)
        if 0 in take:
            taps.append(x)
        if hasattr(self, "body") and last > 0:
            stem = self.stem.pool(x)
            t1, t2, t3 = self.tail(stem)
            bridge = self.bridge(t3)
            b1, b2, x = self.body(bridge, t2, t1, stem)
            if 1 in take:
                taps.append(x)
            if hasattr(self, "head") and last > 1:
                outputs = self.head(x, b2, b1, bridge, last - 1)
                x = outputs[-1]
                for index, output in enumerate(outputs):
                    if index + 2 in take:
                        taps.append(output)
        return x, taps

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return (final features, features at `indices`), or only the latter with `intermediates_only`.

        Args:
            x: Images (N, in_chans, H, W).
            indices: Features to return: 0 is the stem before its pool, 1 to 4 are b3, h1, h2, h3. A number takes that
                many of the last ones, None takes all.
            norm: Has no effect: the features are raw sums of a pre-activation network, without a final norm.
            stop_early: Whether to stop at the last index; its map is then the final features.
            output_fmt: Must be NCHW.
            intermediates_only: Whether to return only the features at `indices`.
        """
        assert output_fmt == "NCHW", "Output format must be NCHW."
        take, last = feature_take_indices(self.num_taps, indices)
        end = last if stop_early else self.num_taps - 1
        x, taps = self._run(x, take, end)
        if intermediates_only:
            return taps
        if hasattr(self, "score") and end == self.num_taps - 1:
            x = self.score(x)
        return x, taps

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map before pooling (N, num_features, H/32, W/32)."""
        x, _ = self._run(x, [], self.num_taps - 1)
        if hasattr(self, "score"):
            x = self.score(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool features and classify them; with `pre_logits` return the pooled features."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class FeatureEntry(TypedDict):
    """timm's description of a feature map."""

    num_chs: int
    reduction: int
    module: str


def _feature(config: FishConfig, name: str) -> FeatureEntry:
    """Return timm's description of the output of a stage."""
    return {"num_chs": config.channels[name], "reduction": config.strides[name], "module": MODULES[name]}


def _init_weights(module: nn.Module) -> None:
    """Initialize one layer; running statistics of norms are reset."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
        return
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights of any known layout with the names of this library."""
    from fishnet.models.checkpoints.weights import convert_state

    return convert_state(state_dict)


def _cfg(url: str = "", **kwargs: object) -> dict[str, object]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "classifier",
        "paper_name": "FishNet: A Versatile Backbone for Image, Region, and Pixel Level Prediction",
        "paper_ids": "arXiv:1901.03495",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "fishnet150.osmr_in1k": _cfg(
            url="https://github.com/osmr/imgclsmob/releases/download/v0.0.502/fishnet150-0475-93e26daa.pth.zip",
            origin_url="https://github.com/osmr/imgclsmob",
            license="mit",
            custom_load=True,
        ),
        "fishnet_nano.cifar10": _cfg(
            file=str(PACKAGED / PRETRAINED["cifar10"].packaged),
            num_classes=10,
            input_size=(3, 32, 32),
            pool_size=(1, 1),
            crop_pct=1.0,
            mean=(0.491, 0.482, 0.447),
            std=(0.247, 0.243, 0.262),
            license="apache-2.0",
            custom_load=True,
        ),
        # the star makes the configuration for photos the default one, also of fishnet_nano
        **{f"{name}.untrained*": _cfg() for name in VARIANTS if name != "fishnet150"},
    }
)


def _create_fishnet(variant: str, pretrained: bool, kwargs: ModelOptions) -> nn.Module:
    """Build a variant for timm; `kwargs` are fields of `FishConfig` or arguments of `FishNet`."""
    known = {field.name for field in fields(FishConfig)}
    options = {name: kwargs.pop(name) for name in list(kwargs) if name in known}
    if pretrained:
        kwargs["pretrained_cfg_overlay"] = _downloaded(variant, kwargs)
    return build_model_with_cfg(
        FishNet,
        variant,
        pretrained,
        config=VARIANTS[variant].with_options(**options),
        feature_cfg={"feature_cls": "getter"},
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


def _downloaded(variant: str, kwargs: ModelOptions) -> ModelOptions:
    """Return timm's `pretrained_cfg_overlay`, with the local path of the checkpoint if its tag is known here.

    timm cannot download it itself: it is zipped and published with a SHA-1.
    """
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    if cfg.custom_load and cfg.url and cfg.tag and not (cfg.file or cfg.state_dict or cfg.hf_hub_id):
        from fishnet.models.checkpoints.pretrained import fetch

        overlay.update(file=str(fetch(cfg.tag)), custom_load=True)
    return overlay


@register_model
def fishnet99(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """FishNet-99 as released: 16.6 M parameters, 4.3 G multiply-adds at 224x224."""
    return _create_fishnet("fishnet99", pretrained, kwargs)


@register_model
def fishnet150(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """FishNet-150 as released: 25.0 M parameters, 6.4 G multiply-adds at 224x224."""
    return _create_fishnet("fishnet150", pretrained, kwargs)


@register_model
def fishnet201(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """FishNet-201 as released: 44.6 M parameters, 10.5 G multiply-adds at 224x224."""
    return _create_fishnet("fishnet201", pretrained, kwargs)


@register_model
def fishnext150(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """FishNeXt-150: bottlenecks of twice the width with 4 channels per group."""
    return _create_fishnet("fishnext150", pretrained, kwargs)


@register_model
def fishnet_nano(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """FishNet-nano: 0.7 M parameters, for small images and small devices."""
    return _create_fishnet("fishnet_nano", pretrained, kwargs)


@register_model
def fishnet_tiny(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """FishNet-tiny: 3 M parameters, for edge devices."""
    return _create_fishnet("fishnet_tiny", pretrained, kwargs)


@register_model
def fishnet_small(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """FishNet-small: 8 M parameters."""
    return _create_fishnet("fishnet_small", pretrained, kwargs)
