"""The local hub with the endpoints that a push needs: create, validate, preupload, LFS batch, commit.

A repository keeps its earlier commits, each in a folder ``was-COMMIT``. Xet is not used: set ``HF_HUB_DISABLE_XET``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.hub.hubserver import LFS, AnswerError, Handler, Hub


class WritableHub(Hub):
    """A hub whose organizations and their members are known.

    Args:
        root: Folder of the repositories.
        tokens: Token -> user.
        members: Organization -> its users.
    """

    def __init__(
        self, root: Path, *, tokens: dict[str, str], members: dict[str, tuple[str, ...]]
    ) -> None:
        self.members = members
        self.uploaded: dict[str, bytes] = {}
        self.commits: list[dict[str, Any]] = []
        super().__init__(root, tokens=tokens)

    def handler(self) -> type[Handler]:
        return WritingHandler

    def constants(self, cache: Path) -> dict[str, Any]:
        return {**super().constants(cache), "HF_HUB_DISABLE_XET": True}

    def env(self, home: Path) -> dict[str, str]:
        return {**super().env(home), "HF_HUB_DISABLE_XET": "1"}


class WritingHandler(Handler):
    """One connection."""

    do_PUT = Handler.do_GET  # noqa: N815 - the name that http.server calls

    def _route(self, path: str, query: dict[str, list[str]]) -> None:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(self.body)["content"])
        elif parts[0] == "lfs-upload":
            assert hashlib.sha256(self.body).hexdigest() == parts[1]
            self.hub.uploaded[parts[1]] = self.body
            self._send(200, b"", {})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(path)
        elif "preupload" in parts:
            self._preupload(self._writable(parts, "preupload"))
        elif "commit" in parts:
            self._commit(self._writable(parts, "commit"))
        else:
            super()._route(path, query)

    def _create(self, asked: dict[str, Any]) -> None:
        owner, user = asked["organization"], self._user()
        if user is None:
            raise AnswerError(401, "Invalid username or password.")
        self._check_member(owner, user)
        folder = self.hub.root / "models" / owner / asked["name"]
        if folder.exists():
            raise AnswerError(409, "You already created this model repo")
        (folder / "main").mkdir(parents=True)
        settings = {"private": asked.get("visibility") == "private", "readers": [user]}
        (folder / "repo.json").write_text(json.dumps(settings))
        self._json({"url": f"{self.hub.url}/{owner}/{asked['name']}"})

    def _check_member(self, owner: str, user: str | None) -> None:
        if user != owner and user not in self.hub.members.get(owner, ()):
            raise AnswerError(
                403, f'You don\'t have the rights to create a model under the namespace "{owner}"'
            )

    def _validate(self, content: str) -> None:
        header = yaml.safe_load(content.split("---")[1])
        known = {"license", "library_name", "pipeline_tag", "tags", "model-index"}
        if header["license"] == "no-such":
            errors = [{"message": '"license" must be one of the known ones'}]
            self._send(400, json.dumps({"errors": errors}).encode(), {})
            return
        assert known <= set(header)
        self._json({"errors": [], "warnings": []})

    def _writable(self, parts: list[str], word: str) -> Path:
        name = "/".join(parts[2 : parts.index(word)])
        repo = self._repo("model", name)
        self._check_member(name.partition("/")[0], self._user())
        return repo.folder

    def _preupload(self, folder: Path) -> None:
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if LFS.search(f["path"]) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for f in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, path: str) -> None:
        name = path.strip("/").removesuffix(".git/info/lfs/objects/batch")
        self._writable(["api", "models", *name.split("/"), "end"], "end")
        self._json({
            "transfer": "basic",
            "objects": [
                {
                    **{k: o[k] for k in ("oid", "size")},
                    "actions": {"upload": {"href": f"{self.hub.url}/lfs-upload/{o['oid']}"}},
                }
                for o in json.loads(self.body)["objects"]
            ],
        })

    def _commit(self, folder: Path) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        main, new = folder / "main", folder / "new"
        shutil.copytree(main, new)
        for line in lines[1:]:
            value = line["value"]
            path = new / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes(self.hub.uploaded[value["oid"]])
            else:
                assert line["key"] == "deletedFile"
                path.unlink()
        name = folder.relative_to(self.hub.root / "models").as_posix()
        before, _ = self._repo("model", name).at("main")
        main.rename(folder / f"was-{before}")
        new.rename(main)
        commit, _ = self._repo("model", name).at("main")
        self.hub.commits.append({"name": name, "commit": commit, "lines": lines})
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})
