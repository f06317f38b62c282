"""Object keys, and file names in a manifest: safe as an S3 key and as a path below any directory."""

from __future__ import annotations

from yarn_ops.errors import StoreError

MAX_KEY_BYTES = 1024  # S3
MAX_PART_BYTES = 255  # NAME_MAX of the usual filesystems


def check_key(key: str) -> str:
    """`key` itself; StoreError unless it is a relative POSIX path that names a place below its root."""
    fault = _fault(key)
    if fault is not None:
        shown = repr(key) if len(key) <= 80 else f"{key[:77]!r}..."
        raise StoreError(f"{shown}: refused as an object name: {fault}")
    return key


def join(prefix: str, name: str) -> str:
    """`name` below `prefix`; "" is the root."""
    return f"{prefix}/{name}" if prefix else name


def elsewhere(uri: str, url: str) -> StoreError:
    """Of what a registry or MLflow names by its whole address, where the store lies at another one by now."""
    return StoreError(
        f"{uri}: not below the store {url}; put the store back in its old place, or leave a link to it there "
        "(YARN_OPS_STORE_URL, or YARN_OPS_STATE_DIR, says where it is)"
    )


def _fault(key: str) -> str | None:
    try:
        parts = [part.encode() for part in key.split("/")]
    except UnicodeEncodeError:
        return "not valid Unicode"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        return "it holds a control character"
    if "\\" in key:
        return "it holds a backslash"
    if any(part in (b"", b".", b"..") for part in parts):
        return "it is empty, absolute or leaves its directory"
    if len(key.encode()) > MAX_KEY_BYTES or any(len(part) > MAX_PART_BYTES for part in parts):
        return f"longer than {MAX_KEY_BYTES} bytes, or {MAX_PART_BYTES} between slashes"
    return None
