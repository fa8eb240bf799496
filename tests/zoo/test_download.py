from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from exprune_fx.errors import DataError
from exprune_fx.zoo import download_fashion_mnist, load_fashion_mnist
from exprune_fx.zoo.data import SHA256
from tests.zoo.fashion import publish

IMAGES = "t10k-images-idx3-ubyte.gz"


class Server:
    """A web server on this machine that remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.cut = False
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                server.asked.append(self.path)
                if not server.cut:
                    return super().do_GET()
                raw = (server.folder / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw[: len(raw) // 2])
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "published"
    publish(folder, monkeypatch)
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_all_four_files_come_and_load(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = download_fashion_mnist(tmp_path / "new" / "folder", url=server.url)
    assert files_in(folder) == set(SHA256)
    for name in SHA256:
        assert (folder / name).read_bytes() == (server.folder / name).read_bytes()
    images, labels = load_fashion_mnist(folder, "test")
    assert images.shape == (5, 1, 28, 28)
    assert labels.dtype == torch.int64
    captured = capsys.readouterr()
    assert captured.out == ""  # standard output is the caller's
    assert IMAGES in captured.err


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    folder = download_fashion_mnist(tmp_path / "data", url=server.url, progress=False)
    assert len(server.asked) == 4
    (folder / IMAGES).write_bytes(b"spoilt")
    download_fashion_mnist(folder, url=server.url, progress=False)
    assert server.asked[4:] == [f"/{IMAGES}"]
    load_fashion_mnist(folder, "test")


def test_files_in_the_subfolder_count(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download_fashion_mnist(tmp_path / "data" / "fashion-mnist", url=server.url, progress=False)
    download_fashion_mnist(tmp_path / "data", url=server.url, progress=False)
    assert len(server.asked) == 4
    assert capsys.readouterr().err == ""


def test_a_wrong_file_is_not_written(server: Server, tmp_path: Path) -> None:
    (server.folder / IMAGES).write_bytes(b"something else")
    with pytest.raises(DataError, match="sha256"):
        download_fashion_mnist(tmp_path / "data", url=server.url, progress=False)
    assert IMAGES not in files_in(tmp_path / "data")


def test_a_wrong_answer_does_not_destroy_what_was_there(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / IMAGES).write_bytes(b"the user's own")
    (server.folder / IMAGES).write_bytes(b"something else")
    with pytest.raises(DataError, match="sha256"):
        download_fashion_mnist(folder, url=server.url, progress=False)
    assert (folder / IMAGES).read_bytes() == b"the user's own"


def test_a_connection_that_breaks_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.cut = True
    with pytest.raises(DataError, match="train-images"):
        download_fashion_mnist(tmp_path / "data", url=server.url, progress=False)
    assert files_in(tmp_path / "data") == set()


def test_a_missing_file_is_a_data_error_with_its_cause(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="404") as caught:
        download_fashion_mnist(tmp_path / "data", url=f"{server.url}/nowhere", progress=False)
    assert "by hand" in caught.value.hint
    assert files_in(tmp_path / "data") == set()


def test_no_server_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as closed:
        port = closed.server_address[1]  # free again, and nobody listens there, once the server is closed
    with pytest.raises(DataError, match="could not be fetched"):
        download_fashion_mnist(tmp_path, url=f"http://127.0.0.1:{port}", progress=False)
