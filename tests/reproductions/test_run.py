"""The runner of reproductions: seeds, table, picture, page."""

import pytest
from matplotlib.figure import Figure

from kzoo import reproductions
from kzoo.papers import Paper
from kzoo.reproductions.registry import Reproduction

PAPER = Paper(title="A Claim", authors=("A. Author",), year=2020)


def claim(run):
    return Reproduction("one_claim", PAPER, "Seeds grow.", run)


def test_numbers_of_every_seed_and_the_first_figure(tmp_path):
    def run(seed):
        """Returns its seed."""
        return {"seed": seed, "square": seed**2}, Figure()

    lines = []
    result = reproductions.measure(claim(run), seeds=3, report=lines.append)
    assert result.numbers == {"seed": [0, 1, 2], "square": [0, 1, 4]}
    assert len(lines) == 3

    page = tmp_path / "reproductions.md"
    reproductions.write(page, result)
    reproductions.write(page, result)
    text = page.read_text("utf-8")
    assert text.count("## One claim") == 1
    assert "| square | 1.667 | 0 | 4 |" in text
    assert "Returns its seed." in text
    assert "kzoo reproduce one_claim --seeds 3" in text
    assert (tmp_path / "pictures/reproductions/one_claim.png").read_bytes()[1:4] == b"PNG"


def test_a_set_that_is_not_there_is_asked_for():
    def run(seed, data_dir):
        return {"found": data_dir == "here"}

    with pytest.raises(ValueError, match="data_dir"):
        reproductions.measure(claim(run))
    assert reproductions.measure(claim(run), data_dir="here").numbers == {"found": [1.0]}


def test_seeds_and_names_are_checked():
    with pytest.raises(ValueError, match="seeds.*0"):
        reproductions.measure(claim(lambda seed: {}), seeds=0)
    with pytest.raises(ValueError, match="no reproduction 'nothing_like_it'"):
        reproductions.find("nothing_like_it")


def test_every_reproduction_is_of_a_registered_paper_and_says_what_it_does():
    from kzoo.papers import papers

    titles = {paper.title for paper in papers()}
    for name in reproductions.names():
        found = reproductions.find(name)
        assert found.paper.title in titles
        assert found.run.__doc__
        assert found.claim.endswith(".")
