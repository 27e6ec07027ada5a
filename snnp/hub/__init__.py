"""Models and datasets by name: in the installation, in folders, in mirrors, and on the Hugging Face Hub.

    resolve("org/name@v1.0")        where it lies, fetched and checked if need be
    load_model("org/name")          the same, loaded
    publish("dataset", folder, "org/name")

Nothing that is fetched is ever run or unpickled; every file is compared with the sha256 in the repository's manifest.
"""

from snnp.hub.client import Publication, list_repositories, publish
from snnp.hub.manifest import MANIFEST_FILE, make_manifest, read_manifest, write_manifest
from snnp.hub.names import parse_reference
from snnp.hub.resolver import add_to_mirror, bundled_datasets, load_model, resolve

__all__ = ["MANIFEST_FILE", "Publication", "add_to_mirror", "bundled_datasets", "list_repositories", "load_model"]
__all__ += ["make_manifest", "parse_reference", "publish", "read_manifest", "resolve", "write_manifest"]
