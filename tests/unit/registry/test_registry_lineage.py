"""What a model was made from: read from the registry's rows, drawn as a tree and on a page."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from yarn_ops.cli.lineage import tree_rows
from yarn_ops.cli.lineage_page import page, places
from yarn_ops.errors import RegistryError
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Corpus, PatchedModel, Record, Release, Tree
from yarn_ops.registry import Registry, open_registry, upgrade
from yarn_ops.registry.lineage import LineageNode, nearest_parents, read_lineage, run_of_release
from yarn_ops.scores import Check, Score, Scorecard, Verdict


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    opened = open_registry(url)
    yield opened
    opened.close()


def tree(name: str) -> Tree:
    return Tree(uri=f"file:///store/{name}", digest=name.ljust(64, "0"), files=1, size_bytes=2048)


def keep(registry: Registry, run: str, stage: str, record: Record, *parents: Record) -> Record:
    """The record as the stage of a run has made it; reused where another run made it before."""
    record = record.model_copy(update={"parents": tuple(one.digest for one in parents)})
    key = f"{stage}-{record.digest}"
    lease = registry.claim(key, stage=stage, run_id=run, holder="me", lease_s=60)
    if lease is not None:
        registry.complete(lease, record)
    registry.note_use(run, key, reused=lease is None, seconds=1.5 if lease else 0.01)
    return record


def base_of(name: str, source: str = "shipped:base512") -> BaseModel:
    return BaseModel(
        tree=tree(name), source=source, architecture="L", model_type="llama", parameters=1, vocab_size=1,
        context_tokens=512, head_dim=1, rope_theta=1.0,
    )  # fmt: skip


def extend(registry: Registry, base: BaseModel, made: str, version: int) -> str:
    """A small run from documents to a release; its id."""
    run = registry.begin_run({"publish": {"name": made}}, made).id
    keep(registry, run, "base", base)
    corpus = keep(registry, run, "documents", Corpus(tree=tree("c0"), files=3, size_bytes=9))
    patched = PatchedModel(
        tree=tree(f"{made}9"), method="yarn", factor=4, original_context_tokens=512,
        target_context_tokens=2048, attention_factor=1, inverse_frequency_error=0,
    )  # fmt: skip
    keep(registry, run, "patch", patched, base)
    adapter = Adapter(
        tree=tree(f"{made}8"), method="lora", steps=20, window_tokens=1, tokens_seen=1,
        trainable_parameters=1, first_loss=1, final_loss=1, seconds=1,
    )  # fmt: skip
    keep(registry, run, "train", adapter, base, patched, corpus)
    merged = Checkpoint(
        tree=tree(made), method="yarn", factor=4, original_context_tokens=512, context_tokens=2048,
        parameters=1, merge_difference=0,
    )  # fmt: skip
    keep(registry, run, "merge", merged, base, patched, adapter, corpus)
    cards = []
    for model in (base, merged):
        score = Score(task="perplexity", context_tokens=1, value=1, samples=1, seed=0)
        card = Scorecard(model_digest=model.digest, original_context_tokens=512, scores=(score,))
        cards.append(keep(registry, run, "evaluate", card, model, corpus))
    check = Check(name=made, measured=1, threshold=1, passed=True, reason="so")
    verdict = keep(registry, run, "gate", Verdict(passed=True, checks=(check,)), *cards)
    release = Release(
        name=made, version=version, mlflow_run_id="m", gate="passed", alias=None,
        tags={"tree_digest": "f" * 64},
    )  # fmt: skip
    keep(registry, run, "publish", release, base, merged, *cards, verdict)
    registry.finish_run(run, "completed")
    return run


KINDS = ["base", "documents", "patched", "adapter", "merged", "scores", "scores", "verdict", "release"]


def by_kind(nodes: list[LineageNode], run: str) -> dict[str, LineageNode]:
    return {node.kind if node.name != "of base" else "before": node for node in nodes if node.run == run}


def test_what_a_release_was_made_from_stands_before_it(registry: Registry) -> None:
    run = extend(registry, base_of("b0"), "a1", version=3)
    assert run_of_release(registry, "a1", 3) == run
    nodes = read_lineage(registry, run)
    assert [node.kind for node in nodes] == KINDS
    known = by_kind(nodes, run)
    made_from = {kind: {one.kind for one in nodes if one.id in node.parents} for kind, node in known.items()}
    assert made_from["adapter"] == {"base", "patched", "documents"}
    assert made_from["before"] == {"base", "documents"}
    assert made_from["verdict"] == {"scores"}
    merged, release = known["merged"], known["release"]
    facts = (merged.digest, merged.size_bytes, merged.seconds, merged.run, merged.uri, merged.name)
    assert facts == ("a1".ljust(64, "0"), 2048, 1.5, run, "file:///store/a1", "2,048 tokens")
    assert (release.name, release.digest) == ("a1 version 3", "f" * 64)
    assert known["documents"].size_bytes == 9  # theirs, not that of the list of them
    nearest = nearest_parents(nodes)
    assert nearest[merged.id] == [known["adapter"].id]
    assert nearest[release.id] == [known["verdict"].id]


def test_a_base_that_was_merged_here_brings_its_own_lineage(registry: Registry) -> None:
    first = extend(registry, base_of("b0"), "a1", version=1)
    second = extend(registry, base_of("a1", "models:/a1/1"), "a2", version=1)
    nodes = read_lineage(registry, second)
    assert [node.kind for node in nodes if node.run == first] == KINDS[:5]  # documents are reused
    base = by_kind(nodes, second)["base"]
    (merged,) = (node for node in nodes if node.id in base.parents)
    assert (merged.kind, merged.run, merged.name) == ("merged", first, "2,048 tokens")
    place = {node.id: number for number, node in enumerate(nodes)}
    assert all(place[parent] < place[node.id] for node in nodes for parent in node.parents)


def test_a_model_merged_into_its_own_base_ends(registry: Registry) -> None:
    run = extend(registry, base_of("a1"), "a1", version=1)
    assert [node.kind for node in read_lineage(registry, run)] == KINDS


def test_a_release_of_elsewhere_is_told_in_one_line(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="a1 version 7: no run of this registry made it"):
        run_of_release(registry, "a1", 7)


def test_the_tree_shows_everything_once(registry: Registry) -> None:
    nodes = read_lineage(registry, extend(registry, base_of("b0"), "a1", version=1))
    rows = list(tree_rows(nodes))
    assert sorted(node.id for _, node, again in rows if not again) == sorted(node.id for node in nodes)
    assert (rows[0][0], rows[0][1].kind) == ("", "release")
    assert {node.kind for _, node, again in rows if again} == {"base", "documents"}


class Tags(HTMLParser):
    """What a page consists of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_page_draws_every_box_apart_and_points_nowhere(registry: Registry) -> None:
    nodes = read_lineage(registry, extend(registry, base_of("b0", "<script>alert(1)</script>"), "a1", 1))
    at = places(nodes)
    assert len(set(at.values())) == len(nodes)
    assert all(at[parent][0] < at[node.id][0] for node in nodes for parent in node.parents)
    html = page("a1 <1>", "run", nodes)
    tags = Tags(html).found
    assert [tag for tag, _ in tags].count("rect") == len(nodes)
    assert not {"script", "img", "link", "a", "iframe"} & {tag for tag, _ in tags}
    assert not [value for _, given in tags for name, value in given.items() if name in ("src", "href")]
    assert all(node.digest in html for node in nodes)
