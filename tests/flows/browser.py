"""What a person does in a browser: fill in the form, watch the run, read the report, find the version.

`python tests/flows/browser.py --to infra/screenshots` does it with a service of its own and keeps pictures.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service_up import Remote, Up, wait_until

SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-quic", "--no-first-run", "--no-proxy-server"]  # fmt: skip
LONGEST_MS = 390_000
RECIPE: dict[str, Any] = {
    "base": {"model": "shipped:base512"},
    "rope": {"target_context_tokens": 1024},
    "data": {"sources": ["stdlib:json/*.py", "stdlib:email/*.py", "stdlib:asyncio/*.py"]},
    "train": {"steps": 24, "context_tokens": 512, "learning_rate": 1e-3},
    "evaluate": {"lengths": [1, 2, 3], "windows": 4, "recall_windows": 4},
    "gate": {
        "min_recall_kept": 0,
        "min_uses_share": 0,
        "max_short_growth": 9,
        "max_long_growth": 9,
        "max_short_recall_loss": 1,
    },
    "publish": {"name": "shown"},
}
"""What the pictures show."""


class Person:
    """In front of a browser. With `pictures`, each page that was come to is kept there."""

    def __init__(self, page: Any, service: Remote, pictures: Path | None = None) -> None:
        self._page = page
        self._service = service
        self._pictures = pictures
        self.addresses: list[str] = []
        """everything that the browser asked for"""
        page.set_default_timeout(LONGEST_MS)
        page.on("request", lambda request: self.addresses.append(request.url))

    def extend(self, name: str, context_tokens: int) -> None:
        """Open the form, change the target context and the model's name, submit."""
        ui, deployment = self._service.service.prefect_ui_url, self._service.deployment["id"]
        self._page.goto(f"{ui}/deployments/deployment/{deployment}/run")
        self._page.get_by_text("Run Name", exact=True).wait_for()
        self._page.locator("input").first.fill(f"{name}, by hand")
        self._field("Target context (tokens) (Optional)").locator("input").last.fill(str(context_tokens))
        self._field("Model name").locator("textarea").fill(name)
        self._page.mouse.wheel(0, -100_000)
        self._keep("run-form")
        self._page.get_by_role("button", name="Submit").click()
        self._page.get_by_role("link", name=f"{name}, by hand", exact=True).first.click()
        self._page.get_by_text("Subflow Runs", exact=True).first.wait_for()  # a tab of the run's page

    def open_short_form(self, pages: str) -> Any:
        """The fields of text of the form of five fields; pages: "" for the older ones, /v2 for the newer."""
        ui, deployment = self._service.service.prefect_ui_url, self._service.short["id"]
        self._page.goto(f"{ui}{pages}/deployments/deployment/{deployment}/run")
        fields = self._page.locator("textarea")
        fields.nth(2).wait_for()
        self._page.get_by_text("standard", exact=True).first.wait_for()
        self._keep(f"short-form{pages.replace('/', '-')}")
        return fields

    def fill_in_short_form(self, pages: str, answers: Sequence[str], target: int) -> None:
        """answers: base, documents, name. The preset is quick."""
        fields = self.open_short_form(pages)
        for place, answer in enumerate(answers):
            fields.nth(place).fill(answer)
        self._page.locator("input[type=number]").first.fill(str(target))
        self._page.get_by_text("standard", exact=True).first.click()
        if not pages:
            self._page.keyboard.press("ArrowDown")
        self._page.get_by_text("quick", exact=True).last.click()
        self._page.get_by_role("button", name="Submit").click()

    def empty_the_short_form(self, pages: str) -> None:
        """Without its base it is refused in one line."""
        fields = self.open_short_form(pages)
        first = [field.input_value() for field in fields.all()]
        assert first == ["shipped:base512", "stdlib:**/*.py", "demo-long"]
        fields.first.fill("")
        self._page.get_by_role("button", name="Submit").click()
        refused = self._page.get_by_text("base: is empty; fill it in")
        refused.or_(self._page.get_by_text("required property")).first.wait_for()

    def made_up_names(self, pages: str) -> list[str]:
        """What the form calls a run that nobody has named yet, a dozen times."""
        self.open_short_form(pages)
        name, again = (
            self._page.locator("input").first,
            self._page.locator("input + button, .p-text-input button"),
        )
        names = []
        for _ in range(12):
            names.append(name.input_value())
            again.first.click()
        return names

    def save_deployment(self, pages: str, deployment: str) -> None:
        """Open its form, change nothing, save."""
        address = f"{self._service.service.prefect_ui_url}{pages}/deployments/deployment/{deployment}"
        self._page.goto(f"{address}/edit")
        self._page.get_by_text("Learning rate", exact=True).first.wait_for()
        self._page.get_by_role("button", name="Save", exact=True).click()
        self._page.wait_for_url(re.compile(rf"/deployment/{deployment}($|\?)"), timeout=20_000)

    def change_time(self, pages: str, deployment: str, cron: str) -> None:
        """Of its one schedule."""
        self._page.goto(f"{self._service.service.prefect_ui_url}{pages}/deployments/deployment/{deployment}")
        if pages:
            self._page.get_by_text("Schedules", exact=True).wait_for()
            self._page.get_by_role("button", name="Open menu").last.click()
            self._page.get_by_role("menuitem", name="Edit").click()
            field = self._page.locator("[role=dialog] input[name='schedule.cron']")
            self._page.get_by_text("Fingerprint (Optional)", exact=True).wait_for()  # the last of its fields
            self._page.wait_for_timeout(2_000)  # it takes what was typed once it has read its schema
        else:
            self._page.locator("[class*=schedule] button").first.click()
            self._page.get_by_text("Edit", exact=True).last.click()
            field = self._page.locator(".p-modal input[type=text]").nth(1)
        field.fill(cron)
        self._page.get_by_role("button", name="Save", exact=True).last.click()
        field.wait_for(state="hidden", timeout=20_000)

    def watch(self) -> None:
        """See it train, and complete."""
        if self._pictures is not None:
            wait_until(self._trains, timeout_s=LONGEST_MS / 1000)
            self._page.get_by_text("Artifacts", exact=True).click()
            self._page.wait_for_timeout(3_000)
            self._keep("running")
            self._page.get_by_text("Logs", exact=True).first.click()
        ended = self._page.get_by_text(re.compile("^(Completed|Rejected|Failed|Crashed|Cancelled)$")).first
        ended.wait_for()
        assert ended.inner_text() == "Completed"

    def read_report(self, described: str) -> str:
        """Open it; its text, once its pictures are drawn."""
        self._page.get_by_text("Artifacts", exact=True).click()
        self._page.get_by_text(described).click()
        pictures = self._page.locator("img[src^='data:image/png']")
        pictures.nth(2).wait_for()
        assert all(picture.evaluate("image => image.naturalWidth > 0") for picture in pictures.all())
        self._keep("report")
        text: str = self._page.locator("body").inner_text()
        return text

    def find_version(self, name: str) -> str:
        """Follow the report's link into MLflow; what its page of the model version says."""
        self._page.goto(self._page.get_by_role("link", name="Model version").get_attribute("href"))
        self._page.get_by_text(name).first.wait_for()
        self._page.get_by_text("context_length", exact=True).wait_for()
        self._keep("model-version")
        text: str = self._page.locator("body").inner_text()
        return text

    def _trains(self) -> bool:
        address: str = self._page.evaluate("location.pathname")
        run_id = address.rstrip("/").rpartition("/")[2]
        found = self._service.find("artifacts", run_id)
        return any(one["key"] == "progress-train" and one["data"] > 20 for one in found)

    def _field(self, title: str) -> Any:
        label = self._page.get_by_text(title, exact=True)
        return self._page.locator(".schema-form-property").filter(has=label).last

    def _keep(self, name: str) -> None:
        if self._pictures is not None:
            self._page.screenshot(path=self._pictures / f"{name}.png")


def chromium() -> str | None:
    """Where Debian's is, if there is one; without windows does as well."""
    return shutil.which("chromium") or shutil.which("chromium-headless-shell")


@contextmanager
def browser(driver: Any) -> Iterator[Any]:
    """A page of Debian's chromium."""
    running = driver.chromium.launch(executable_path=chromium(), args=SWITCHES)
    try:
        yield running.new_page(viewport={"width": 1300, "height": 1250})
    finally:
        running.close()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True)
    to = parser.parse_args().to
    with tempfile.TemporaryDirectory() as folder:
        service = Up(Path(folder) / "state")
        try:
            service.change_deployment(parameters={"recipe": RECIPE})
            with sync_playwright() as driver, browser(driver) as page:
                page.goto(service.addresses["Prefect"])
                person = Person(page, service, to)
                person.empty_the_short_form("/v2")
                person.extend("demo-long", 1536)
                person.watch()
                person.read_report("demo-long version 1, gate passed")
                person.find_version("demo-long")
        finally:
            service.end(signal.SIGTERM)


if __name__ == "__main__":
    main()
