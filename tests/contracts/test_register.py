"""The register itself: every paper is tested, every part is documented and can be found."""

import inspect
import pathlib

import pytest

from kzoo.explain import Explainer
from kzoo.papers import KINDS, components, find_tests, papers

ROOT = pathlib.Path(__file__).parents[2]
PARTS = components()


def test_every_paper_has_a_test():
    tests = find_tests(ROOT)
    missing = [paper.title for paper in papers() if paper.title not in tests]
    assert not missing, "give a test of each the mark pytest.mark.paper(title)"


def test_every_marked_paper_is_registered():
    known = {paper.title for paper in papers()}
    assert not find_tests(ROOT).keys() - known


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.path)
def test_a_part_is_documented_and_importable_by_its_path(part):
    package = __import__(f"kzoo.{part.kind}", fromlist=["_"])
    assert getattr(package, part.name) is part.target, f"export it from kzoo.{part.kind}"
    assert part.summary.endswith(".") or part.summary.endswith(":"), "begin with a sentence"
    for paper in part.papers:
        assert paper.arxiv is None or paper.arxiv in part.target.__doc__ + _module_doc(part)


def _module_doc(part):
    return __import__(part.target.__module__, fromlist=["_"]).__doc__ or ""


def test_the_house_has_no_other_rooms():
    assert {part.kind for part in PARTS} <= set(KINDS)


@pytest.mark.parametrize(
    "part", [part for part in PARTS if part.kind == "explain"], ids=lambda part: part.name
)
def test_an_explanation_is_a_signature_or_says_why_not(part):
    is_explainer = inspect.isclass(part.target) and issubclass(part.target, Explainer)
    assert is_explainer or part.not_served, "say why in @component(..., not_served=...)"
