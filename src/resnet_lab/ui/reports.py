"""The report page of a sweep, made in memory; it runs no script but the report's own."""

import base64
import hashlib
import re
import threading
from importlib.resources import files as resources

from resnet_lab.ui.views import Views

HTML = "text/html; charset=utf-8"


class Reports:
    """Makes reports, one at a time: Matplotlib's settings are those of the whole process."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self._lock = threading.Lock()

    def page(self, key: str) -> tuple[str, bytes, str]:
        """Content type, page and content policy of the report on a sweep as it is now.

        Its pages come from what anybody may have written, so it is shown as if from a site of its
        own, and only the script that sorts its tables may run.

        Raises:
            UserError: there is nothing to report on yet.
        """
        path, _ = self.views.sweep(key)
        with self._lock:
            from resnet_lab.report.compose import compose
            from resnet_lab.report.runs import read

            html = compose(read([path]), path / "report").html([])
        # A page of that site could not open them; the page of all runs has the files.
        html = re.sub(r'<a href="[^"]*">([^<]*)</a>', r"\1", html)
        return HTML, html.encode("utf-8", "replace"), _policy()


def _policy() -> str:
    script = resources("resnet_lab.report").joinpath("sort.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
    )
