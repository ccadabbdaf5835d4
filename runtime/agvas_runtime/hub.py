"""A bundle from a model hub: ``hf:org/name`` or ``hf:org/name@revision``.

The manifest comes first and says which files to fetch; all are kept in the hub's own cache, by commit, and their hashes are compared as
those of any bundle are. Without ``offline`` the hub is asked what the revision means now; a hub that cannot be reached is an error, not a
reason to take what is in the cache.
"""

import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, errors, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from agvas_core.contract.certificate import PARITY_NAME
from agvas_core.contract.errors import BundleError, SetupError, UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, check_file_name, read_manifest

__all__ = ["fetch_bundle"]

# Of the hub's HTTP client, which is another one in each of its major versions.
_ClientError: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_bundle(model: str, *, offline: bool = False) -> Path:
    """The folder of a bundle on the hub, fetched where it is not in the cache yet.

    Args:
        model: ``hf:org/name``, with ``@`` and a branch, tag or commit where it is to stay the same.
        offline: takes it from the cache, and opens no connection.

    Raises:
        UsageError: not such a name, or no such repository or revision.
        SetupError: the hub cannot be reached; it is not in the cache (offline).
        BundleError: the repository is no bundle.
    """
    found = _NAME.fullmatch(model)
    if found is None:
        raise UsageError(f"model is {model!r}; a model of the hub is hf:org/name or hf:org/name@revision")
    repo, revision = found["repo"], found["revision"] or "main"
    try:
        commit = revision if offline or _COMMIT.fullmatch(revision) else _commit(repo, revision)
        manifest_file = _file(repo, MANIFEST_NAME, revision, offline)
        folder = manifest_file.parent
        for name in read_manifest(folder).files:
            check_file_name(folder, name)
            _file(repo, name, folder.name if _COMMIT.fullmatch(folder.name) else commit, offline)
        if not offline and try_to_load_from_cache(repo, PARITY_NAME, revision=folder.name) is None:
            with suppress(EntryNotFoundError):  # the certificate is not part of every bundle
                _file(repo, PARITY_NAME, folder.name, offline)
    except LocalEntryNotFoundError as error:
        if offline:
            raise SetupError(
                f"{model} is not whole in the cache, and offline nothing is fetched: load it once without --offline"
            ) from error
        raise _unreachable(model, error) from error
    except GatedRepoError as error:
        raise SetupError(
            f"{model} is only for those who were let in: accept its terms on the hub and log in with hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no {repo} on the hub, or it is private: check the name, or log in with hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"{repo} has no revision {revision!r}: leave it out, or name a branch, tag or commit that it has"
        ) from error
    except EntryNotFoundError as error:
        raise BundleError(
            f"{model} lacks a file of a bundle ({_first_line(error)}): it is no bundle, or was not uploaded whole"
        ) from error
    except HFValidationError as error:
        raise UsageError(f"{model} cannot be a name on the hub: {_first_line(error)}") from error
    except (HfHubHTTPError, _ClientError, ConnectionError) as error:  # the last where HF_HUB_OFFLINE is set
        raise _unreachable(model, error) from error
    except OSError as error:
        raise SetupError(
            f"{model} cannot be kept in the hub's cache ({error}): free space, or set HF_HOME to another folder"
        ) from error
    return folder


def _commit(repo: str, revision: str) -> str:
    return str(HfApi().model_info(repo, revision=revision, timeout=20).sha)


def _file(repo: str, name: str, revision: str, offline: bool) -> Path:
    return Path(hf_hub_download(repo, name, revision=revision, local_files_only=offline))


def _unreachable(model: str, error: Exception) -> SetupError:
    return SetupError(
        f"{model}: the hub does not answer ({_first_line(error)}): check the network, or pass --offline to take what is in the cache"
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
