"""What pip-audit found, for a person: its JSON on standard input, its log as the argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    """0: no advisory; 1: some, one line each; 2: PyPI was not asked or did not answer."""
    text = sys.stdin.read()
    packages = json.loads(text)["dependencies"] if text.strip() else []
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    asked = len(packages) - len(unknown)
    for package in packages:
        for advisory in package.get("vulns", ()):
            fixed = ", ".join(advisory["fix_versions"]) or "nothing yet"
            print(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    if asked == 0:
        last = Path(sys.argv[1]).read_text("utf-8").strip().splitlines()[-1:]
        why = f" ({last[0][:200]})" if last and not packages else ""
        print(f"audit: PyPI's advisories cannot be reached{why}; nothing was audited", file=sys.stderr)
        return 2
    if unknown:
        print(f"not known to PyPI: {', '.join(unknown)}", file=sys.stderr)
    return int(any(package.get("vulns") for package in packages))


if __name__ == "__main__":
    sys.exit(main())
