"""What one request costs an S3 server (Swift) and its client, in milliseconds of processor.

pip install -e '.[cluster,stack]'
python infra/benchmarks/s3_requests.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from botocore.exceptions import ClientError
from cluster import cpu_of, place, servers

from yarn_ops.store import store_options
from yarn_ops.store.s3 import S3Store

SMALL, LARGE, COPIED = b"x" * 10_000, b"x" * 2_000_000, b"x" * 700_000
FIRST = 5
"""requests that are not counted"""


def main() -> None:
    with place() as settings:
        store = S3Store("s3://bucket/requests", store_options(settings))
        client, bucket = store._client, store.bucket

        def missing(number: int) -> None:
            with suppress(ClientError):
                client.get_object(Bucket=bucket, Key=f"none/{number}")

        print("| | client | Swift |\n|---|---|---|")
        cost("PUT of 10 kB", 200, lambda n: store.write(f"small/{n}", SMALL))
        cost("PUT of 2 MB", 50, lambda n: store.write(f"large/{n}", LARGE))
        cost("GET of 10 kB", 200, lambda n: store.read(f"small/{n}"))
        cost("GET of 2 MB", 50, lambda n: store.read(f"large/{n}"))
        cost("HEAD", 200, lambda n: store.size(f"small/{n}"))
        cost("GET of nothing", 200, missing)
        cost("LIST of nothing", 200, lambda n: list(store.list(f"none/{n}")))
        store.write("copied", COPIED)
        cost("copy, its size not told", 100, lambda n: store.copy("copied", f"copies/{n}"))
        cost("copy, its size told", 100, lambda n: store.copy("copied", f"told/{n}", len(COPIED)))


def cost(name: str, count: int, request: Callable[[int], object]) -> None:
    for number in range(FIRST):
        request(number)
    served, asked = sum(map(cpu_of, servers())), time.process_time()
    for number in range(FIRST, FIRST + count):
        request(number)
    asked, served = time.process_time() - asked, sum(map(cpu_of, servers())) - served
    print(f"| {name} | {1000 * asked / count:.1f} | {1000 * served / count:.1f} |", flush=True)


if __name__ == "__main__":
    main()
