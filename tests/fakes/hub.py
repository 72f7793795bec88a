"""A stand-in of the Hugging Face hub on this machine: the calls that make a repository and send files into it."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent. Requests whose path has `refused` in it are answered with that status and sentence."""

    def __init__(self, refused: dict[str, tuple[int, str]]):
        super().__init__(("127.0.0.1", 0), Calls)
        self.refused = refused
        self.repositories: dict[str, dict] = {}  # what each was made with
        self.files: dict[str, bytes] = {}  # of the one repository
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.tokens: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Calls(BaseHTTPRequestHandler):
    """The calls of huggingface-hub."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.body()
        self.server.tokens.add(self.headers.get("Authorization"))
        for part, (status, sentence) in self.server.refused.items():
            if part in self.path:
                return self.answer({"error": sentence}, status)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories[name] = asked
            return self.answer({"url": f"{self.server.url}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            return self.answer({"files": [self.upload_mode(file["path"]) for file in json.loads(body)["files"]]})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return self.answer({"transfer": "basic", "objects": [self.with_address(each) for each in objects]})
        if "/commit/" in self.path:
            return self.commit([json.loads(line) for line in body.splitlines()])
        return self.answer({"error": f"No such call: {self.path}"}, 404)

    def do_PUT(self) -> None:
        if "/large/" in self.server.refused:
            return self.answer({"error": self.server.refused["/large/"][1]}, self.server.refused["/large/"][0])
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def body(self) -> bytes:
        """What a request holds, whether its length is told before or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while length := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def upload_mode(self, path: str) -> dict:
        large = path.endswith(".safetensors")
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def with_address(self, item: dict) -> dict:
        return item | {"actions": {"upload": {"href": f"{self.server.url}/large/{item['oid']}", "header": {}}}}

    def commit(self, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]
        where = self.path.split("/")
        address = f"{self.server.url}/{where[3]}/{where[4]}/commit/{'0' * 40}"
        self.answer({"commitUrl": address, "commitOid": "0" * 40, "success": True})

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words) -> None:
        """Says nothing."""


@contextmanager
def running_hub(refused: dict[str, tuple[int, str]] | None = None):
    """The stand-in while it answers."""
    with Hub({} if refused is None else refused) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
