"""The preprocessing is found from boxes that changed pictures keep; where they do not decide, the search stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from avq.builder.frontend.preprocess_candidates import Candidate, geometries, same_numbers, variants
from avq.builder.frontend.preprocess_choice import Scored, choose
from avq.builder.frontend.preprocess_evidence import Evidence, chance_of, picture_evidence, same_boxes
from avq.builder.frontend.preprocess_search import PreprocessSearch, SearchResult
from avq.errors import RequestError
from avq.preprocess import PRESETS, spec_named, spec_text
from avq.types import DecoderSpec, Detections, PreprocessSpec
from tests.decoders.head_replicas import yolox

SIZE_PX = (160, 128)


def boxes(*rows: Sequence[float]) -> Detections:
    """Rows x0, y0, x1, y1, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), "", 0, 0)


def candidate(text: str, *, published: bool = False) -> Candidate:
    return Candidate(spec_named(text, *SIZE_PX), published)


def scored(text: str, scores: Sequence[float], *, published: bool = False, place: float = 0.0) -> Scored:
    """Evidence with one box a picture; candidates of another place give other boxes."""
    found = boxes((place, 0, place + 20, 20, 0.9, 0))
    return Scored(candidate(text, published=published), tuple(Evidence(s, 2, found) for s in scores))


# Candidates.


def test_candidates_have_distinct_names_that_preprocess_takes() -> None:
    for published in ([], [PRESETS["yolox"](*SIZE_PX), PRESETS["yolox-legacy"](*SIZE_PX)]):
        tried = variants(published, SIZE_PX)
        every = [spec for one in tried for spec in (one.spec, *one.twins)]
        assert len({spec_text(spec) for spec in every}) == len(every)
        assert all(spec_named(spec_text(spec), *SIZE_PX) == spec for spec in every)
        numbers = {spec_text(spec).split(",", 2)[2] for spec in every}
        assert {"0..1", "0..255", "-1..1", "imagenet", "mean=127.5,std=128", "mean=127,std=128"} <= numbers
        assert {spec.channel_order for spec in every} == {"RGB", "BGR"}
        assert [one.spec for one in tried[: len(published)]] == published
        assert [one.published for one in tried] == [i < len(published) for i in range(len(tried))]


def test_nearly_equal_numbers_are_one_candidate() -> None:
    one, other = (spec_named(f"stretch,RGB,{text}", *SIZE_PX) for text in ("-1..1", "mean=127,std=128"))
    assert same_numbers(one, other)
    assert not same_numbers(one, replace(other, channel_order="BGR"))
    assert not same_numbers(one, spec_named("stretch,RGB,imagenet", *SIZE_PX))


def test_geometries_have_each_shape_and_padding() -> None:
    twin = spec_named("top-left-letterbox-114,BGR,mean=127,std=128", *SIZE_PX)
    tried = geometries(replace(candidate("top-left-letterbox-114,BGR,-1..1"), twins=(twin,)))
    assert all(spec_text(one.twins[0]).endswith("BGR,mean=127,std=128") for one in tried)
    shapes = [spec_text(one.spec).partition(",")[0] for one in tried]
    assert shapes[0] == "top-left-letterbox-114"
    assert {"stretch", "crop", "center-letterbox-114", "center-letterbox-0", "center-letterbox-128"} <= set(
        shapes
    )


def test_a_byte_input_leaves_geometry_and_order() -> None:
    tried = variants([PRESETS["yolox"](*SIZE_PX)], SIZE_PX, bytes_only=True)
    assert [spec_text(one.spec) for one in tried] == [
        f"top-left-letterbox-114,{o},0..255" for o in ("BGR", "RGB")
    ]


# Evidence of one picture.


def pixels_with(*places: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A smooth background with red squares of 24 px."""
    coarse = np.random.default_rng(seed).integers(60, 160, (6, 8, 1), np.uint8).repeat(3, axis=2)
    pixels = np.asarray(cv2.resize(coarse, (320, 256), interpolation=cv2.INTER_CUBIC))
    for x, y in places:
        pixels[y : y + 24, x : x + 24] = (20, 20, 240)
    return pixels


def red_squares(pixels: np.ndarray) -> Detections:
    red = pixels[..., 2].astype(np.int64) - pixels[..., :2].max(axis=-1) > 90
    count, _, stats, _ = cv2.connectedComponentsWithStats(red.astype(np.uint8))
    rows = [(x, y, x + w, y + h, 0.9, 0) for x, y, w, h, area in stats[1:count].tolist() if area > 30]
    return boxes(*rows)


def test_objects_that_all_views_have_are_evidence() -> None:
    evidence = picture_evidence(red_squares, pixels_with((60, 60), (150, 100), (220, 160)))
    assert evidence.objects == 3
    assert evidence.score == pytest.approx(3 * 0.9, abs=0.1)


def test_boxes_at_fixed_places_are_no_evidence() -> None:
    """Saturated scores in a grid, whatever the picture shows: the mirrored picture has them, too."""
    grid = [(x, y, x + 60, y + 60, 0.999, 0) for x in range(0, 320, 20) for y in range(0, 256, 32)]
    evidence = picture_evidence(lambda _: boxes(*grid), pixels_with())
    assert evidence.score < 0
    large = boxes((20, 20, 260, 240, 0.99, 0), (40, 16, 280, 236, 0.98, 0), (30, 10, 270, 230, 0.97, 1))
    assert picture_evidence(lambda _: large, pixels_with()).objects <= 1


def test_more_than_100_objects_are_none() -> None:
    many = [(x, y, x + 9, y + 9, 0.9, 0) for x in range(0, 320, 20) for y in range(0, 256, 20)]
    assert picture_evidence(lambda _: boxes(*many), pixels_with()).score == -2.0


def test_the_chance_is_exact_for_few_pictures() -> None:
    assert chance_of(np.array([1.0, 2.0, 3.0, 0.0])) == pytest.approx(1 / 8)
    assert chance_of(np.array([-1.0, -2.0, -3.0])) == 1.0
    assert chance_of(np.zeros(4)) == 1.0
    assert chance_of(np.full(30, 0.1)) == pytest.approx(1 / 8192)


def test_same_boxes_have_partners_both_ways() -> None:
    one, shifted = boxes((0, 0, 20, 20, 0.9, 0)), boxes((1, 1, 21, 21, 0.7, 0))
    assert same_boxes([one], [shifted])
    assert not same_boxes([one], [boxes((0, 0, 20, 20, 0.9, 1))])
    assert not same_boxes([one], [boxes((0, 0, 20, 20, 0.9, 0), (60, 0, 80, 20, 0.9, 0))])


# The choice.

MUCH = [1.0, 1.2, 0.9, 1.1, 1.0, 1.3, 0.8, 1.0]
LESS = [0.5, 0.6, 0.4, 0.5, 0.6, 0.7, 0.3, 0.5]
MIXED = [1.4, 0.8, 1.3, 0.7, 1.2, 0.9, 1.2, 0.6]


def test_clearly_more_evidence_is_chosen() -> None:
    choice = choose(
        [scored("stretch,RGB,0..1", LESS, published=True), scored("stretch,BGR,0..1", MUCH, place=50)]
    )
    assert (choice.chosen, choice.undecided) == (1, "")


def test_a_published_one_is_chosen_among_equal_boxes() -> None:
    little_less = [0.97 * score for score in MUCH]
    choice = choose(
        [scored("stretch,RGB,0..1", little_less, published=True), scored("stretch,BGR,0..1", MUCH)]
    )
    assert (choice.chosen, choice.undecided) == (0, "")


@pytest.mark.parametrize("published", [True, False])
def test_a_tie_with_other_boxes_is_undecided(published: bool) -> None:
    choice = choose(
        [scored("stretch,RGB,0..1", MUCH, published=published), scored("stretch,BGR,0..1", MIXED, place=50)]
    )
    assert "BGR" in choice.undecided
    assert sorted(choice.rivals) == [0, 1]


def test_of_geometries_the_first_published_one_is_taken() -> None:
    rows = [
        scored("center-letterbox-0,BGR,imagenet", MUCH, published=True),
        scored("stretch,BGR,imagenet", MIXED, published=True, place=50),
    ]
    assert (choose(rows).chosen, choose(rows).undecided) == (0, "")


def test_too_few_objects_decide_nothing() -> None:
    few = Scored(candidate("stretch,RGB,0..1", published=True), (Evidence(0.9, 1, boxes()),) * 3)
    assert "3 on 3 of 3 pictures" in choose([few]).undecided
    none = Scored(few.candidate, (Evidence(0.0, 0, boxes()),) * 16)
    assert choose([none]).undecided


# The whole search, with a network that sees red squares when its input is right.


class Squares:
    family, nms_in_graph = "squares", True

    def candidates(self, raw: dict[str, np.ndarray], spec: DecoderSpec, score_threshold: float) -> object:
        rows = raw["rows"]
        return rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int64)


def network(truth: PreprocessSpec) -> Callable[[object], Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Undoes the truth's numbers; sees red squares, and a grid of nonsense where values are far too large."""

    def run(values: np.ndarray) -> dict[str, np.ndarray]:
        pixels = (values[0].transpose(1, 2, 0) * truth.std + truth.mean) / truth.scale
        if np.abs(pixels).max() > 400:
            rows = [(x, y, x + 30, y + 30, 0.99, 0) for x in range(0, 140, 12) for y in range(0, 90, 12)]
        else:
            ordered = pixels if truth.channel_order == "BGR" else pixels[..., ::-1]
            found = red_squares(np.clip(ordered, 0, 255).astype(np.uint8))
            rows = [(*box, 0.9, 0) for box in found.boxes_xyxy_px.tolist()]
        return {"rows": np.array(rows, np.float32).reshape(-1, 6)}

    return lambda _: run


def searched(truth: str, pictures: Sequence[np.ndarray], published: Sequence[str] = ()) -> SearchResult:
    specs = [spec_named(text, *SIZE_PX) for text in published]
    source = yolox(1, 3)[0]
    search = PreprocessSearch(
        source,
        DecoderSpec("squares"),
        [Squares()],  # type: ignore[list-item]
        network(spec_named(truth, *SIZE_PX)),
    )
    return search.run(variants(specs, SIZE_PX), pictures)


def street(count: int) -> list[np.ndarray]:
    places = np.random.default_rng(1).integers((20, 20), (270, 200), (count, 2, 2))
    return [pixels_with(*map(tuple, pair.tolist()), seed=i) for i, pair in enumerate(places)]


@pytest.mark.parametrize(
    "truth",
    [
        "center-letterbox-114,RGB,0..255",
        "center-letterbox-114,BGR,-1..1",
        "center-letterbox-114,BGR,imagenet",
    ],
)
def test_the_truth_is_found_without_a_published_one(truth: str) -> None:
    result = searched(truth, street(8))
    assert spec_text(result.spec) == truth
    assert truth in result.messages[0]
    assert any("chosen" in line and truth in line for line in result.messages[1:])


def test_a_wrong_published_one_gives_way() -> None:
    truth = "center-letterbox-114,RGB,0..1"
    assert spec_text(searched(truth, street(8), ["center-letterbox-114,BGR,0..255"]).spec) == truth


def test_pictures_without_objects_list_every_candidate() -> None:
    blank = [pixels_with(seed=i) for i in range(8)]
    with pytest.raises(RequestError, match="do not decide") as error:
        searched("center-letterbox-114,RGB,0..1", blank, ["center-letterbox-114,BGR,0..255"])
    lines = error.value.fix.splitlines()
    assert error.value.exit_code == 2
    for text in ("BGR,0..255", "RGB,0..1", "RGB,mean=127,std=128"):
        assert any(line.startswith(f"  --preprocess center-letterbox-114,{text} ") for line in lines)
