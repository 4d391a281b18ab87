"""Videos in, annotated videos and JSON lines out; the videos are made with PyAV."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.cli import main
from fishnet.commands.predict import predict
from fishnet.config import PreprocessConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.detectors import RegionPlan
from fishnet.prediction.inputs import find_inputs
from fishnet.prediction.video import VideoReader
from fishnet.predictor import Predictor
from tests.models_on_disk import classifier_card, save_classifier

av = pytest.importorskip("av")

WIDTH, HEIGHT, FPS = 97, 64, 25
"""An odd width, which yuv420p does not have."""


def still(number: int, size: tuple[int, int] = (WIDTH + 1, HEIGHT)) -> np.ndarray:
    """Return the frame of a number: a gray that says it, and a red upper half."""
    pixels = np.full((size[1], size[0], 3), 40 + 4 * (number % 50), np.uint8)
    pixels[: size[1] // 2] = (200, 20, 20)
    return pixels


def make(
    path: Path,
    count: int = 20,
    codec: str = "mpeg4",
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (WIDTH + 1, HEIGHT),
    **options: str,
) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 5
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(still(number, size), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    """Return time and pixels of every frame, read with PyAV alone."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = create_model("fishnet_nano", num_classes=3, stem_stride=1)
    torch.nn.init.normal_(network.get_classifier().weight, std=0.1)
    card = classifier_card("abc", options={"stem_stride": 1}, preprocess=PreprocessConfig(crop_pct=1.0))
    folder = tmp_path_factory.mktemp("run")
    save_classifier(folder / "model.safetensors", network, card)
    return str(folder)


def test_a_video_gives_a_line_per_frame_and_an_annotated_copy(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    clip, out = make(tmp_path / "my clip.MP4", 20), tmp_path / "out"
    found = predict(run, [str(clip)], str(out), device="cpu", batch_size=6)
    (entry,) = found.videos
    assert entry == {
        "file": clip.as_posix(), "width": WIDTH + 1, "height": HEIGHT, "fps": FPS, "every": 1, "frames": 20,
        "complete": True, "results": "videos/my clip.jsonl", "video": "videos/my clip.mp4",
    }  # fmt: skip
    assert found.document["complete"]
    assert found.images == []
    rows, source, drawn = lines(out / entry["results"]), decoded(clip), decoded(out / entry["video"])
    assert [row["frame"] for row in rows] == list(range(20))
    assert [row["time"] for row in rows] == pytest.approx([time for time, _ in source], abs=1e-4)
    assert [time for time, _ in drawn] == pytest.approx([time for time, _ in source], abs=1e-3)
    predictor = Predictor(run, "cpu")
    for row, (_, pixels) in zip(rows, source, strict=True):
        answer = predictor(Image.fromarray(pixels))
        assert [one["label"] for one in row["predictions"]] == answer["labels"]
        assert [one["score"] for one in row["predictions"]] == pytest.approx(answer["scores"], abs=1e-4)
    for (_, before), (_, after) in zip(source, drawn, strict=True):
        change = np.abs(before.astype(int) - after)
        assert change[HEIGHT * 3 // 4 :, WIDTH * 3 // 4 :].mean() < 6  # the picture itself
        assert change[: HEIGHT // 4, : WIDTH // 4].mean() > 20  # the caption
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["my clip.jsonl", "my clip.mp4"]
    assert "my clip.MP4: 20 frames" in capsys.readouterr().out


def test_every_third_frame_without_a_picture(run: str, tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.4, 0.5, 0.9, 1.5]  # a phone records at a varying rate
    clip = make(tmp_path / "a.mkv", len(times), times=times)
    times_of_three = [time for time, _ in decoded(clip)][::3]
    assert times_of_three == pytest.approx([0.0, 0.4, 1.5], abs=0.03)
    found = predict(run, [str(clip)], str(tmp_path / "out"), device="cpu", every=3, pictures=False)
    (entry,) = found.videos
    assert (entry["frames"], entry["every"], "video" in entry, entry["complete"]) == (3, 3, False, True)
    rows = lines(tmp_path / "out" / entry["results"])
    assert [row["frame"] for row in rows] == [0, 3, 6]
    assert [row["time"] for row in rows] == pytest.approx(times_of_three, abs=0.002)
    drawn = predict(run, [str(clip)], str(tmp_path / "drawn"), device="cpu", every=3).videos[0]
    written = decoded(tmp_path / "drawn" / drawn["video"])
    assert [time for time, _ in written] == pytest.approx(times_of_three, abs=0.01)


def test_two_videos_of_one_name_and_an_image(run: str, tmp_path: Path) -> None:
    Image.fromarray(still(3)).save(tmp_path / "photo.png")
    (tmp_path / "b").mkdir()
    clips = [make(tmp_path / "a.mp4", 3), make(tmp_path / "b" / "A.avi", 4)]
    words = [str(tmp_path / "photo.png"), str(tmp_path / "**" / "*.*")]
    assert find_inputs(words).videos == clips
    assert main(["predict", run, *words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    document = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert [one["frames"] for one in document["videos"]] == [3, 4]
    assert [one["video"] for one in document["videos"]] == ["videos/a.mp4", "videos/A_2.mp4"]
    assert [Path(one["file"]).name for one in document["images"]] == ["photo.png"]
    again = predict(run, [str(clips[1])], str(tmp_path / "out"), device="cpu", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out" / "videos").iterdir()) == ["A.jsonl", "A.mp4"]
    assert again.videos[0]["frames"] == 4


@pytest.mark.parametrize("name", ["cut.mp4", "cut.avi", "cut.mkv"])
def test_a_video_that_ends_in_the_middle_of_a_frame_gives_what_was_decoded(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    whole = make(tmp_path / f"whole{Path(name).suffix}", 50, **({"movflags": "faststart"} if "mp4" in name else {}))
    clip = tmp_path / name
    clip.write_bytes(whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
    found = predict(run, [str(clip)], str(tmp_path / "out"), device="cpu")
    (entry,) = found.videos
    assert entry["complete"] is False
    assert 5 < entry["frames"] < 50
    rows = lines(tmp_path / "out" / entry["results"])
    assert [row["frame"] for row in rows] == list(range(entry["frames"]))
    assert len(decoded(tmp_path / "out" / entry["video"])) == entry["frames"]
    printed = capsys.readouterr().out
    assert printed.count("\n") <= 4
    assert f"{clip} ends in the middle of a frame, after {entry['frames']} of about 50 frames" in printed
    intact = predict(run, [str(whole)], str(tmp_path / "intact"), device="cpu", pictures=False)
    assert (intact.videos[0]["frames"], intact.videos[0]["complete"]) == (50, True)


def test_what_is_no_video_is_an_error_or_skipped(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, sound, cut = tmp_path / "text.mp4", tmp_path / "sound.mp4", tmp_path / "cut.mov"
    text.write_text("hello" * 100)
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 44100
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    whole = make(tmp_path / "whole.mov").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])  # its index would follow
    for path, reason in ((text, "not a video"), (sound, "no video stream"), (cut, "cut off before its index")):
        with pytest.raises(FishnetError, match=rf"cannot use the video .*{path.name}: .*{reason}.*--bad-images skip"):
            predict(run, [str(path)], str(tmp_path / "out"), device="cpu")
        assert not list((tmp_path / "out").rglob("*.*"))
    good = make(tmp_path / "good.mp4", 3)
    found = predict(run, [str(text), str(good)], str(tmp_path / "out"), device="cpu", bad_images="skip")
    assert found.bad_images == [text.as_posix()]
    assert f"skipped unreadable video {text.as_posix()}" in capsys.readouterr().out
    assert [one["file"] for one in found.videos] == [good.as_posix()]
    with pytest.raises(FishnetError, match="none of the 1 videos can be read"):
        predict(run, [str(text)], str(tmp_path / "none"), device="cpu", bad_images="skip")


def test_an_upright_phone_video(tmp_path: Path) -> None:
    """A player turns the red upper half to the right: by a quarter clockwise, as the track header says."""
    clip = make(tmp_path / "phone.mp4", 2, size=(64, 48))
    content = clip.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    place = content.index(upright, content.index(b"tkhd"))
    clip.write_bytes(content[:place] + turned + content[place + len(upright) :])
    with VideoReader(clip) as reader:
        frame = next(iter(reader))
    assert frame.image.size == (48, 64)
    left, right = (np.asarray(frame.image)[:, columns].mean((0, 1)) for columns in (slice(0, 20), slice(28, 48)))
    assert right[0] > right[1] + 100
    assert abs(left[0] - left[1]) < 20


def test_a_video_is_never_read_and_written_in_one_place(run: str, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    clip = make(tmp_path / "videos" / "a.mp4", 3)
    content = clip.read_bytes()
    with pytest.raises(UsageError, match=r"overwrite the input .*a\.mp4; choose another --out"):
        predict(run, [str(clip)], str(tmp_path), device="cpu", overwrite=True)
    other = make(tmp_path / "a.mov", 3)
    with pytest.raises(UsageError, match=r"videos/a\.mp4 is not from an earlier predict"):
        predict(run, [str(other)], str(tmp_path), device="cpu")
    assert clip.read_bytes() == content


def test_videos_need_the_extra_and_a_folder_of_videos_says_so(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "a.mp4", 2)
    with pytest.raises(FishnetError, match=r"contains no images.*name videos themselves, such as .*a\.mp4"):
        find_inputs([tmp_path])
    with pytest.raises(UsageError, match="--every must be at least 1, not 0"):
        predict(run, [str(clip)], str(tmp_path / "out"), every=0)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'fishnet-vision\[video\]'"):
        predict(run, [str(clip)], str(tmp_path / "out"), device="cpu")


def test_frames_of_a_detector_have_its_boxes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = RegionPlan(kind="fcos", num_classes=2, preset="nano", sizes={"score": 0.0, "detections": 5})
    architecture = Architecture("fishnet_nano", {"region": plan}, {})
    preprocess = PreprocessConfig()
    card = ModelCard("detection", architecture, {"region": HeadCard(["cat", "dog"])}, 64, preprocess)
    network = build_network(architecture, mean=preprocess.mean, std=preprocess.std)
    save_model(tmp_path / "model.safetensors", network, card)
    clip = make(tmp_path / "a.mp4", 3, size=(128, 96))
    model = str(tmp_path / "model.safetensors")
    found = predict(model, [str(clip)], str(tmp_path / "out"), device="cpu", score=0.0, max_detections=3)
    rows = lines(tmp_path / "out" / found.videos[0]["results"])
    assert all(len(row["predictions"]) == 3 for row in rows)
    before, after = decoded(clip), decoded(tmp_path / "out" / found.videos[0]["video"])
    answers = Predictor(model, "cpu", score=0.0, max_detections=3)
    for row, (_, pixels), (_, drawn) in zip(rows, before, after, strict=True):
        boxes = answers(Image.fromarray(pixels))["boxes"]
        assert np.array([one["box"] for one in row["predictions"]]) == pytest.approx(np.array(boxes), abs=0.02)
        assert np.abs(pixels.astype(int) - drawn).mean() > 2
