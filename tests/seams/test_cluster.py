"""Documents prepared by two nodes that share nothing but S3: the bytes of one process, whoever dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from dask_cluster import DaskCluster, with_cluster
from swift_cluster import SwiftCluster

from yarn_ops import services
from yarn_ops.cluster import ClusterUnits, workers_of
from yarn_ops.data import units as cutting
from yarn_ops.data.corpus import survey
from yarn_ops.data.shards import LocalUnits, Units, prepare
from yarn_ops.digests import digest_tree, tree_digest
from yarn_ops.errors import DataError, SettingsError
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Corpus, Local, ShardSet
from yarn_ops.settings import Settings
from yarn_ops.shipped import MODELS
from yarn_ops.store import files_for, open_store, store_options
from yarn_ops.store.trees import fetch_tree, tree_present

BASE512 = MODELS / "base512"
BASE = BaseModel(
    source="shipped:base512", architecture="LlamaForCausalLM", model_type="llama", parameters=5_000_000,
    vocab_size=8192, context_tokens=512, head_dim=64, rope_theta=1e4,
)  # fmt: skip


def settings_of(swift: SwiftCluster, place: Path, bucket: str) -> Settings:
    return Settings(
        state_dir=place / "asking",
        store_url=f"s3://{bucket}/store",
        s3_endpoint_url=swift.endpoint_url,
        s3_access_key=swift.access_key,
        s3_secret_key=swift.secret_key,
        s3_region=swift.region,
    )


@pytest.fixture(scope="module")
def cluster(swift: SwiftCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two nodes for all tests here: where results go is said by who asks."""
    place = tmp_path_factory.mktemp("cluster")
    with DaskCluster(with_cluster(settings_of(swift, place, "elsewhere")), 2) as running:
        yield running


@pytest.fixture
def asking(swift: SwiftCluster, bucket: str, tmp_path: Path, cluster: DaskCluster) -> Settings:
    settings = settings_of(swift, tmp_path, bucket)
    return settings.model_copy(update={"cluster": cluster.address})


class Asking:
    """One who prepares a corpus in the bucket."""

    def __init__(self, settings: Settings, place: Path) -> None:
        self.settings = settings
        self._place = place
        self.files = files_for(store_options(settings))
        self.store = open_store(settings.store, store_options(settings))
        self.data = Data(sources=(f"{self.store.url}/in/*",), near_duplicate_similarity=0.8, shared_words=50)
        for number in range(4):
            rows = [
                f"{number} {row} " + " ".join(f"w{row * 7919 % 101 * n}" for n in range(60))
                for row in range(200)
            ]
            lines = "".join(json.dumps({"text": text}) + "\n" for text in [*rows, rows[0], "same"])
            self.store.write(f"in/{number}.jsonl", lines.encode())
        self.store.write("in/long.txt", " ".join(f"word{n}" for n in range(16_000)).encode())

    def prepare(self, name: str, units: Units | None = None, heard: list[str] | None = None) -> ShardSet:
        out = self._place / name
        corpus: Local[Corpus] = Local(survey(self.data, self.files, out / "corpus"), out / "corpus")
        return prepare(
            self.data, corpus, Local(BASE, BASE512), out / "shards",
            units=units or ClusterUnits(self.settings, out / "units"),
            report=lambda _done, _all, text: None if heard is None else heard.append(text),
        )  # fmt: skip

    def moments(self) -> dict[str, str]:
        """When each unit's result was stored; a use later touches its manifest alone."""
        infos = sorted(self.store.list("units/"), key=lambda info: info.modified)
        parts = [info for info in infos if not info.key.endswith("/manifest.json")]
        return {info.key.split("/")[1]: str(info.modified) for info in parts}


def test_two_nodes_make_the_bytes_of_one_process_and_nothing_twice(
    asking: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "LEAST_BYTES", 1 << 16)
    one = Asking(asking, tmp_path)
    alone = one.prepare("alone", LocalUnits(tmp_path / "units", one.files, 1))
    spread = one.prepare("spread")
    assert spread.tree is not None and tree_present(one.store, spread.tree)
    assert spread.tree.digest == tree_digest(digest_tree(tmp_path / "alone/shards"))
    assert spread.model_copy(update={"tree": None}) == alone
    assert alone.dropped.duplicates == 3 + 4  # "same" in four files, and the first row of each again
    fetched = fetch_tree(one.store, spread.tree, tmp_path / "cache")
    assert {p.name: p.read_bytes() for p in (tmp_path / "alone/shards").iterdir()}.items() <= {
        p.name: p.read_bytes() for p in fetched.iterdir()
    }.items()

    before = one.moments()
    assert len(before) > 5
    assert one.prepare("again") == spread
    assert one.moments() == before
    one.store.write("in/more.jsonl", b'{"text": "one more document, of a corpus that grew"}\n')
    grown = one.prepare("grown")
    assert (
        grown.train_documents + grown.held_out_documents
        == 1 + alone.train_documents + alone.held_out_documents
    )
    after = one.moments()
    assert before.items() <= after.items() and len(after) - len(before) <= 3

    unit = next(info.key for info in one.store.list("units/") if info.key.endswith("/tokens.bin"))
    data = one.store.read(unit)
    one.store.write(unit, bytes([data[0] ^ 1]) + data[1:])
    assert one.prepare("healed") == grown
    assert one.store.read(unit) == data
    assert [key for key, moment in one.moments().items() if moment != after[key]] == [unit.split("/")[1]]

    one.store.write("in/broken.jsonl", b"{\n")
    with pytest.raises(DataError, match=r"in/broken\.jsonl, line 1: not JSON"):
        one.prepare("broken")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cluster": "tcp://127.0.0.1:9"}, "no Dask scheduler at tcp://127.0.0.1:9; start one"),
        ({"cluster": "nonsense"}, "no Dask scheduler at nonsense; start one"),
        ({"store_url": "file:///tmp/store"}, "its workers share object storage alone; set YARN_OPS_"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_used_is_told_in_one_line(
    asking: Settings, changed: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yarn_ops.cluster.ANSWER_S", 1.0)
    with pytest.raises(SettingsError) as raised:
        workers_of(asking.model_copy(update=changed))
    assert str(raised.value).startswith("YARN_OPS_CLUSTER: ") and says in str(raised.value)


def test_a_cluster_without_workers_is_told(asking: Settings) -> None:
    asking = with_cluster(asking)
    with DaskCluster(asking, 0), pytest.raises(SettingsError, match="has no worker; start"):
        services.try_cluster(asking)
    assert (
        services.try_cluster(asking.model_copy(update={"cluster": None}))
        == "none: documents are prepared here"
    )


def test_without_the_extra_one_line_says_what_to_install(
    asking: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        SettingsError, match=r"^YARN_OPS_CLUSTER: needs Dask; pip install 'yarn-ops\[cluster\]'$"
    ):
        services.try_cluster(asking)


def test_on_one_machine_nothing_of_dask_is_imported() -> None:
    program = "import sys, flows.extend; sys.exit('distributed' in sys.modules or 'dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_a_node_that_dies_costs_only_its_unit(
    asking: Settings, cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "LEAST_BYTES", 1 << 16)
    one = Asking(asking, tmp_path)
    alone = one.prepare("alone", LocalUnits(tmp_path / "units", one.files, 1))
    found: list[ShardSet] = []
    heard: list[str] = []
    thread = Thread(target=lambda: found.append(one.prepare("spread", heard=heard)))
    thread.start()
    while len(heard) < 2 and thread.is_alive():
        thread.join(0.01)
    before = one.moments()
    cluster.stop(0)
    thread.join(120)
    assert [record.model_copy(update={"tree": None}) for record in found] == [alone]
    assert found[0].tree is not None
    assert found[0].tree.digest == tree_digest(digest_tree(tmp_path / "alone/shards"))
    assert before.items() <= one.moments().items()
