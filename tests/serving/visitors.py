"""A visitor without a browser, who speaks to the page's server as its scripts do."""

import json
import uuid

import httpx


class Visitor:
    """Asks at an address; `files` on the server are named by what an upload gave."""

    def __init__(self, url):
        self.http = httpx.Client(base_url=url, timeout=60)
        self.session = uuid.uuid4().hex
        self.functions = {
            len(one["inputs"]): one["id"]
            for one in self.http.get("config").json()["dependencies"]
            if one["backend_fn"] and one["queue"] is not False and len(one["inputs"]) > 2
        }

    def upload(self, name, content):
        answer = self.http.post("gradio_api/upload", files={"files": (name, content)})
        return answer.json()[0] if answer.status_code == 200 else answer

    def join(self, data):
        body = {"data": data, "fn_index": self.functions[len(data)], "session_hash": self.session}
        return self.http.post("gradio_api/queue/join", json=body)

    def ask(self, *data):
        """What is shown in the end; None where the server reports an error."""
        joined = self.join(list(data))
        joined.raise_for_status()
        sent: list = []
        shown: dict = {}
        with self.http.stream("GET", f"gradio_api/queue/data?session_hash={self.session}") as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if event.get("msg") == "process_generating" and event["success"]:
                    come = event["output"]["data"]
                    sent = patched(sent, come) if sent else come
                    shown |= {place: value for place, value in enumerate(sent) if isinstance(value, str)}
                if event.get("msg") == "process_completed":
                    return list(shown.values()) if event["success"] else None
        return None


def patched(sent, changes):
    """What was sent, after the changes that Gradio sends for each component; a map leaves what is shown."""
    found = []
    for value, change in zip(sent, changes, strict=True):
        for action, path, new in change:
            assert (action, path) in (("replace", []), ("append", [])), (action, path)
            value = new if action == "replace" else value + new
        found.append(value)
    return found


def sound(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
