"""report.html: complete, offline, escaped, and there whatever the run folder lacks."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.drawing.display import Display, Section
from fishnet.errors import FishnetError
from fishnet.files import write_json
from fishnet.metrics import MetricsFile
from fishnet.models.build import Architecture
from fishnet.models.heads.detectors import RegionPlan
from fishnet.report.html import write_report
from fishnet.runs import RunFolder
from tests.models_on_disk import classifier_card

EVIL = "<script>alert('x')</script>&amp;"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Collects tags, resources, tables and text; checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.resources: list[str] = []
        self.titles: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.resources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h2":
            self.titles.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self._open and self._open[-1] == "h2":
            self.titles[-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)


def fill(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> RunFolder:
    """Write what a classification run of two epochs leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    metrics, timing = MetricsFile(run.metrics_csv), MetricsFile(run.timing_csv)
    for epoch, top1 in enumerate((0.5, 0.75), 1):
        for step in (1, 2):
            number = 2 * epoch + step - 2
            metrics.write(number, epoch, "train", {"loss": 1.0 / number, "lr": 0.1, "grad_norm": 3.0})
        metrics.write(2 * epoch, epoch, "val", {"top1": top1, "top5": 1.0, "ece": 0.0625, "loss": 0.875})
        timing.write(2 * epoch, epoch, "train", {"seconds": 60.0, "images_per_second": 9.0})
        timing.write(2 * epoch, epoch, "val", {"seconds": 2.4})
    run.config_yaml.write_text(f"model: fishnet_nano\ndata: {json.dumps(f'data/{classes[0]}')}\nepochs: 5\n")
    run.environment_json.write_text(
        json.dumps({"versions": {"torch": "2.11"}, "command": ["fishnet", "train", classes[0]], "commit": None})
    )
    rows = [
        {"class": name, "images": 4, "correct": 3, "recall": 0.75, "precision": None} for name in classes
    ]  # fmt: skip
    evaluation = {"split": "val", "epoch": 2, "metrics": {"top1": 0.75, "loss": 0.875}, "per_class": rows}
    evaluation["confusion"] = [[3, 1], [1, 3]]
    (folder / "evaluation_val.json").write_text(json.dumps(evaluation))
    run.bad_images_txt.write_text(f"train/a{classes[0]}.jpg\nhttp://example.com/b.jpg\n")
    save_model(run.model_file, {"weight": torch.zeros(1)}, classifier_card(classes))
    Image.new("RGB", (4, 4), "red").save(folder / "train_batch.png")
    Image.new("RGB", (4, 4), "blue").save(folder / "predictions.png")
    Image.new("RGB", (4, 4), "green").save(folder / "insides.png")
    return run


def read(run: RunFolder) -> Page:
    path = write_report(run)
    assert path == run.report_html
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(resource.startswith("data:image/") for resource in page.resources)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    return page


def test_a_full_run_shows_everything(tmp_path: Path) -> None:
    run = fill(tmp_path / "my_run")
    page = read(run)
    assert page.titles == [
        "Curves", "Epochs", "Classes", "Confusion", "Predictions", "Inside the network", "Augmented training batch",
        "Skipped images", "Settings", "Environment",
    ]  # fmt: skip
    for fact in (
        "my_run",
        "classification · fishnet_nano · on data/cat",
        "75.00 %",
        "2 / 5",
        "2 min 05 s",
        "model: fishnet_nano",
    ):
        assert fact in page.text
    pictures = [base64.b64decode(uri.partition(",")[2]) for uri in page.resources]
    assert len(pictures) == 5
    for name in ("train_batch.png", "predictions.png", "insides.png"):
        assert (run.path / name).read_bytes() in pictures
    for row in (
        ["epoch", "train loss", "val top-1", "val top-5", "val calibration error", "val loss", "learning rate"],
        ["1", "0.75", "50.00 %", "100.00 %", "6.25 %", "0.875", "0.1"],
        ["2", "0.2917", "75.00 %", "100.00 %", "6.25 %", "0.875", "0.1"],
        ["cat", "4", "3", "75.00 %", "–"],
        ["versions.torch", "2.11"],
        ["command", "fishnet train cat"],
    ):
        assert row in page.rows


def test_pictures_are_explained_in_the_words_of_the_task(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    for sentence in (
        "with the most probable classes",
        "principal components",
        "correct predictions are on the diagonal",
    ):
        assert sentence in read(run).text
    own = Display(predictions="What & how.", sections=lambda evaluation: [Section("One", "text", "Why <one>.")])
    text = write_report(run, own).read_text("utf-8")
    assert "What &amp; how." in text
    assert "Why &lt;one&gt;." in text
    assert "with the most probable classes" not in text
    run.predictions_png.unlink()
    assert "What &amp; how." not in write_report(run, own).read_text("utf-8")  # no sentence without its picture


def test_every_text_is_escaped(tmp_path: Path) -> None:
    page = read(fill(tmp_path / "a<b>&c", classes=(EVIL, "dög 日本")))
    assert page.text.count(EVIL) >= 4
    assert [EVIL, "4", "3", "75.00 %", "–"] in page.rows
    assert "a<b>&c" in page.text


def test_an_empty_folder_gives_a_report(tmp_path: Path) -> None:
    page = read(RunFolder(tmp_path))
    assert page.titles == ["Curves"]


def test_a_run_in_its_first_epoch_gives_a_report(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    MetricsFile(run.metrics_csv).write(1, 1, "train", {"loss": float("nan"), "lr": 0.1})
    page = read(run)
    assert ["1", "nan", "0.1"] in page.rows


def test_without_an_evaluation_the_best_epoch_comes_from_the_metrics(tmp_path: Path) -> None:
    run = fill(tmp_path)
    MetricsFile(run.metrics_csv).write(6, 3, "val", {"top1": 0.6, "loss": 0.5})
    (tmp_path / "evaluation_val.json").unlink()
    text = write_report(run).read_text()
    assert '<tr class="best"><td>2</td>' in text
    assert "<b>75.00 %</b><span>val top-1</span>" in text
    assert "<b>2</b><span>best epoch</span>" in text


@pytest.mark.parametrize(
    "damage", ["{", "[1]", '{"confusion": [[1]], "classes": ["a", "b"]}', '{"per_class": 3}', '{"metrics": 1}']
)
def test_damaged_files_do_not_stop_the_report(tmp_path: Path, damage: str) -> None:
    run = fill(tmp_path)
    (tmp_path / "evaluation_val.json").write_text(damage)
    assert "Curves" in read(run).titles
    run.environment_json.write_text("not json")
    run.model_file.write_bytes(b"no model")
    run.config_yaml.write_text("a: [")
    run.bad_images_txt.write_bytes(b"\xff\xfe.jpg\n")
    page = read(run)
    assert "environment.json is damaged" in page.text
    assert "Curves" in page.titles


def test_long_tables_are_cut(tmp_path: Path) -> None:
    run = fill(tmp_path)
    rows = [{"class": f"c{i}", "images": i} for i in range(1500)]
    (tmp_path / "evaluation_val.json").write_text(json.dumps({"per_class": rows}))
    run.bad_images_txt.write_text("".join(f"{i}.jpg\n" for i in range(1200)))
    page = read(run)
    assert "and 500 more rows" in page.text
    assert "and 200 more" in page.text
    assert "skipped: 1200" in page.text


def test_large_pictures_become_smaller_and_damaged_ones_a_note(tmp_path: Path) -> None:
    run = fill(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "train_batch.png")
    (tmp_path / "predictions.png").write_bytes(b"\x89PNG broken")
    page = read(run)
    (jpeg,) = (uri for uri in page.resources if uri.startswith("data:image/jpeg"))
    assert len(jpeg) < (tmp_path / "train_batch.png").stat().st_size
    assert "predictions.png cannot be read" in page.text


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=r"run folder .* does not exist"):
        write_report(RunFolder(tmp_path / "absent"))


def test_a_detection_run_shows_headlines_figures_and_curves(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    metrics = MetricsFile(run.metrics_csv)
    figures = {"box_ap": 0.3, "box_ap50": 0.6, "box_ap_small": -1.0, "mask_ap": 0.25, "mask_ap50": 0.5, "mask_ar1": 0.1}
    for step, epoch in ((1, 1), (2, 1), (3, 2)):
        metrics.write(step, epoch, "train", {"loss": 2.0, "loss_mask": 1.0, "loss_objectness": 1.0, "lr": 0.1})
    metrics.write(3, 2, "val", figures)
    curves = {kind: {"0.5": [1.0] * 50 + [0.0] * 51, "0.75": []} for kind in ("box", "mask")}
    row = {"class": "person", "objects": 7, "box_ap": 0.3, "mask_ap": None}
    evaluation = {"epoch": 2, "metrics": figures, "per_class": [row], "curves": curves}
    (tmp_path / "evaluation_val.json").write_text(json.dumps(evaluation))
    architecture = Architecture("fishnet_nano", {"region": RegionPlan("mask_rcnn", num_classes=1)})
    card = ModelCard("detection", architecture, {"region": HeadCard(["person"])}, size=64)
    save_model(run.model_file, {"weight": torch.zeros(1)}, card)
    page = Page(write_report(run).read_text("utf-8"))
    assert ["", "AP", "AP50", "AP small", "AR1"] in page.rows
    assert ["box", "30.00 %", "60.00 %", "–", "–"] in page.rows
    assert ["mask", "25.00 %", "50.00 %", "–", "10.00 %"] in page.rows
    assert ["person", "7", "30.00 %", "–"] in page.rows
    assert "Precision and recall" in page.titles
    assert next(row for row in page.rows if row[0] == "epoch") == [
        "epoch", "train loss", "val box AP", "val box AP50", "val mask AP", "val mask AP50", "learning rate",
    ]  # fmt: skip
    evaluation["curves"] = {"box": 3}
    (tmp_path / "evaluation_val.json").write_text(json.dumps(evaluation))
    assert "precision and recall cannot be drawn" in Page(write_report(run).read_text("utf-8")).text


def test_metrics_that_the_split_does_not_determine_are_dashes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    figures = {"box_ap": -1.0, "box_ap50": -1.0}
    MetricsFile(run.metrics_csv).write(1, 1, "val", figures)
    write_json(run.evaluation_json(), {"epoch": 1, "metrics": {**figures, "mask_ap": float("nan")}})
    architecture = Architecture("fishnet_nano", {"region": RegionPlan("mask_rcnn", num_classes=1)})
    card = ModelCard("detection", architecture, {"region": HeadCard(["person"])}, size=64)
    save_model(run.model_file, {"weight": torch.zeros(1)}, card)
    text = write_report(run).read_text("utf-8")
    assert ["1", "–", "–"] in Page(text).rows
    for title in ("box AP", "box AP50", "mask AP"):
        assert f"<b>–</b><span>val {title}</span>" in text
    assert "-100" not in text
