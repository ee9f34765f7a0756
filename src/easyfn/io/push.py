"""`push_to_hub`: a model in a repository of the hub, in one commit."""

from __future__ import annotations

import tempfile
from typing import Any

from .checkpoint import INDEX
from .save import save


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a model with easyfn",
    commit_description: str | None = None,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    tokenizer: Any = None,
) -> str:
    """Uploads a model as [`easyfn.save`][] writes it, in one commit; returns the commit's URL.

    The repository is created if there is none (`private` as asked). `revision` is a branch, created if need be;
    `create_pr` opens a pull request instead of committing. With `tokenizer`, as `save` takes it, its files are uploaded
    too. Files of the repository that easyfn does not write are kept; shards of the model that the new one no longer has
    are deleted in the same commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="easyfn-push-") as folder:
        save(model, folder, dtype=dtype, max_shard_size=max_shard_size, tokenizer=tokenizer)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
            delete_patterns=["model.safetensors", "model-*-of-*.safetensors", INDEX],
        )
    return str(commit)
