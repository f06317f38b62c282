"""The Swift that the other tests run on: restarts without loss, ends with whoever started it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from swift_cluster import SwiftCluster

STARTER = """
import sys
from pathlib import Path
from swift_cluster import SwiftCluster
cluster = SwiftCluster(Path(sys.argv[1]))
cluster.start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_data_outlive_a_restart(tmp_path: Path) -> None:
    cluster = SwiftCluster(tmp_path)
    with cluster:
        cluster.create_bucket("bucket")
        cluster.client().put_object(Bucket="bucket", Key="a", Body=b"1")
    with cluster:
        assert cluster.client().get_object(Bucket="bucket", Key="a")["Body"].read() == b"1"


@pytest.mark.slow
def test_no_server_outlives_a_killed_starter(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, tmp_path],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == b"ready\n"
    servers = psutil.Process(starter.pid).children(recursive=True)
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    _, alive = psutil.wait_procs(servers, timeout=20)
    assert len(servers) >= 4
    assert alive == []


def test_a_removed_large_object_gives_its_disk_back_at_once(swift: SwiftCluster, bucket: str) -> None:
    """Swift would leave the parts to a process of their own, which the stack does not run."""

    def stored() -> set[Path]:
        return set((swift.directory / "devices").rglob("*.data"))

    client, before = swift.client(), stored()
    for key in ("alone", "with another", "another"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        at = {"Bucket": bucket, "Key": key, "UploadId": upload}
        parts = [
            {
                "PartNumber": part,
                "ETag": client.upload_part(**at, PartNumber=part, Body=bytes(5 << 20))["ETag"],
            }
            for part in (1, 2)
        ]
        client.complete_multipart_upload(**at, MultipartUpload={"Parts": parts})
    assert len(stored() - before) >= 9
    client.delete_object(Bucket=bucket, Key="alone")
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "with another"}, {"Key": "another"}]})
    assert stored() - before == set()
