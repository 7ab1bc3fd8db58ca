"""TorchServe's management API, asked about models and their workers with the key that the server itself wrote."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from medad_serve.errors import MedadError

TIMEOUT_S = 10
RENEWALS = 3
"""Another command may renew the key at the same moment, and end ours with it."""


@dataclass(frozen=True)
class Workers:
    """Of one model: those that wait for requests or answer them, and those that there should be."""

    ready: int
    wanted: int


class Management:
    """The management API at ``url``; ``key_file`` None where the server asks for no token."""

    def __init__(self, url: str, key_file: Path | None, verify: ssl.SSLContext | bool = True) -> None:
        self.url = url.rstrip("/")
        self.key_file = key_file
        self._http = httpx.Client(trust_env=False, verify=verify, timeout=TIMEOUT_S)

    def __enter__(self) -> Management:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Return the names of the models that are registered; raises MedadError as :meth:`workers`."""
        names: list[str] = []
        page = "0"
        while page:
            said = self._asked(f"/models?limit=100&next_page_token={page}")
            names += [model["modelName"] for model in said["models"]]
            page = said.get("nextPageToken", "")
        return names

    def workers(self, model: str) -> Workers:
        """Count the workers of a model, none where it is not registered.

        Raises MedadError where nobody answers, the key is refused, or the answer is not TorchServe's.
        """
        said = self._asked(f"/models/{model}", missing=[{"workers": [], "minWorkers": 1}])
        workers = said[0]["workers"]
        return Workers(sum(worker["status"] == "READY" for worker in workers), max(1, said[0]["minWorkers"]))

    def _asked(self, path: str, missing: Any = None) -> Any:
        try:
            answer = self._get(path, "management")
            for _ in range(RENEWALS):
                if answer.status_code != 400:
                    break
                self._get("/token?type=management", "API")  # TorchServe writes the new one into the file
                answer = self._get(path, "management")
            if answer.status_code == 404 and missing is not None:
                return missing
            if answer.status_code != 200:
                raise _refusal(self.url, answer.status_code)
            return answer.json()
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            fault = f"no management API answers at {self.url} ({reason})"
            raise MedadError(fault, "Check that it runs, the address, and --ca for https") from None
        except (OSError, ValueError, KeyError, TypeError):  # of the key file, or of an answer that is none
            raise MedadError(f"{self.url} cannot be asked with {self.key_file}", "Check address and file") from None

    def _get(self, path: str, key: str) -> httpx.Response:
        headers = {}
        if self.key_file is not None:
            headers = {"Authorization": f"Bearer {json.loads(self.key_file.read_text())[key]['key']}"}
        return self._http.get(f"{self.url}{path}", headers=headers)


def _refusal(url: str, status: int) -> MedadError:
    if status == 400:
        return MedadError(f"{url} refuses the key", "Name the server's key_file.json with --key-file")
    if status == 403 and url.startswith("http:"):  # what TorchServe says to whoever does not speak TLS
        return MedadError(f"{url} speaks TLS", "Ask it by https:// with --ca FILE")
    return MedadError(f"{url} answers {status}", "Check that it is the management address")
