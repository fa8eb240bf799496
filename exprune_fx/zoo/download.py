"""Fetching Fashion-MNIST: the only part of the library that opens a network connection, and only when called."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from exprune_fx.errors import DataError
from exprune_fx.files import written_whole
from exprune_fx.zoo.data import SHA256, find_file, sha256_of

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
"""Where the authors publish the four files."""

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30.0


def _fetch(url: str, path: Path, sha256: str, on_bytes: Callable[[int, int | None], object]) -> None:
    """Fetch `url` to `path`, which comes into being whole and with the right checksum, or not at all."""
    digest = hashlib.sha256()
    with written_whole(path) as (part,):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, part.open("wb") as file:
                total = int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
                while chunk := answer.read(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                    on_bytes(len(chunk), total)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the answer too, and holds the connection
            raise DataError(
                f"{url} could not be fetched to {path}: {error}",
                hint="check the connection, or copy the file there by hand",
            ) from error
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{url} is not the published file: its sha256 is {digest.hexdigest()}, not {sha256}",
                hint="try again later, or copy the file there by hand; nothing was written",
            )


def _is_there(data_dir: Path, name: str) -> bool:
    path = find_file(data_dir, name)
    return path is not None and sha256_of(path) == SHA256[name]


def download_fashion_mnist(data_dir: str | os.PathLike[str], *, url: str = URL, progress: bool = True) -> Path:
    """Fetch Fashion-MNIST's four files (31 MB) over the network, checking each one's sha256.

    Files that are there already and right are kept; wrong ones are replaced. A file appears whole or not at all.

    Args:
        data_dir: the folder to write to; made where it is missing.
        url: the folder to fetch from.
        progress: show a progress bar on standard error.

    Returns:
        The folder, for `load_fashion_mnist`.

    Raises:
        DataError: a file could not be fetched, or what came is not the published file.
    """
    folder = Path(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        for name, sha256 in SHA256.items():
            if _is_there(folder, name):
                continue
            task = bar.add_task(name, total=None)
            # A wrong copy in the subfolder does no harm: the loader looks into the folder itself first.
            _fetch(
                f"{url}/{name}",
                folder / name,
                sha256,
                lambda count, total, task=task: bar.update(task, advance=count, total=total),  # type: ignore[misc]
            )
    return folder
