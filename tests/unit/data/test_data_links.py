"""Links among documents: followed within the folder that a pattern begins with, out of it when asked to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from yarn_ops.data.corpus import read_sources, survey
from yarn_ops.data.documents import read_texts
from yarn_ops.data.files import LocalFiles
from yarn_ops.errors import DataError
from yarn_ops.recipe import Data


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with one document, beside one with a secret."""
    for folder in ("docs/deep", "host"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "docs/a.txt").write_text("own")
    (tmp_path / "host/secret.txt").write_text("secret")
    return tmp_path / "docs"


def texts(pattern: Path | str, out: Path, *, follow_links: bool = False) -> list[str]:
    survey(Data(sources=(str(pattern),), follow_links=follow_links), LocalFiles(), out)
    return [text for source in read_sources(out) for text in read_texts(source, LocalFiles(), "text")]


WAYS_OUT = {
    "a file": ("docs/b.txt", "../host/secret.txt", "docs/*.txt"),
    "a file, named": ("docs/b.txt", "../host/secret.txt", "docs/b.txt"),
    "a file below": ("docs/deep/b.txt", "../../host/secret.txt", "docs/**/*.txt"),
    "a folder": ("docs/more", "../host", "docs/**/*.txt"),
    "a folder, by one sign": ("docs/more", "../host", "docs/*/*.txt"),
    "a folder of folders": ("docs/more", "/", "docs/**/*.txt"),
    "a chain": ("docs/b.txt", "deep/c.txt", "docs/**/*.txt"),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_link_out_is_refused_unless_asked_for(docs: Path, tmp_path: Path, way: str) -> None:
    link, target, pattern = WAYS_OUT[way]
    if way == "a chain":
        (docs / "deep/c.txt").symlink_to("../../host/secret.txt")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match=r"outside of .*; take it out, .*set data\.follow_links") as caught:
        texts(tmp_path / pattern, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    if target != "/":
        assert "secret" in texts(tmp_path / pattern, tmp_path / "out", follow_links=True)


def test_a_link_within_is_the_file_it_leads_to(docs: Path, tmp_path: Path) -> None:
    (docs / "deep/b.txt").symlink_to("../a.txt")
    (docs / "again").symlink_to("deep")
    assert texts(docs / "**/*.txt", tmp_path / "out") == ["own"]
    (tmp_path / "link").symlink_to(docs)  # a name that the recipe gives is followed
    assert texts(tmp_path / "link/**/*.txt", tmp_path / "out") == ["own"]


def test_a_linked_file_is_read_as_its_link_is_named(docs: Path, tmp_path: Path) -> None:
    (docs / "0123abc").write_text('{"text": "row"}\n')
    (docs / "b.jsonl").symlink_to("0123abc")
    assert texts(docs / "*.jsonl", tmp_path / "out") == ["row"]
    (source,) = read_sources(tmp_path / "out")
    assert source.name.startswith("b.jsonl@")


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_that_lead_back_end(docs: Path, tmp_path: Path, follow_links: bool) -> None:
    """Two of them in a folder are 2^40 paths to whoever follows them by name."""
    for name in ("x", "y", "deep/z"):
        (docs / name).symlink_to(docs)
    began = time.monotonic()
    assert texts(docs / "**/*.txt", tmp_path / "out", follow_links=follow_links) == ["own"]
    assert time.monotonic() - began < 5


def test_a_link_put_there_after_the_survey_is_not_followed(docs: Path, tmp_path: Path) -> None:
    survey(Data(sources=(f"{docs}/**/*.txt",)), LocalFiles(), tmp_path / "out")
    (source,) = read_sources(tmp_path / "out")
    (tmp_path / "host/a.txt").write_text("sec")  # of the same length
    (docs / "a.txt").unlink()
    (docs / "a.txt").symlink_to("../host/a.txt")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read"):
        list(read_texts(source, LocalFiles(), "text"))
    (docs / "a.txt").unlink()
    docs.rename(tmp_path / "away")
    docs.symlink_to(tmp_path / "host")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read"):
        list(read_texts(source, LocalFiles(), "text"))
