"""What each kind of node knows of an object besides its bytes; `core.fidelity` says what follows for a pair.

Declared here and shown by the conformance suite and the tests of each driver, since what a node does with an attribute cannot be asked
before there is an object that has it. A local node keeps a bucket's attributes in extended attributes, from where they go
back into a bucket.
"""

from __future__ import annotations

from typing import Final

from rebalance_tasks.core.fidelity import Attribute, Fidelity

_FILE: Final = frozenset({Attribute.MTIME, Attribute.MODE})
_OBJECT: Final = frozenset({Attribute.HEADERS, Attribute.USER_METADATA})

#: Everything: what no field of a file takes lies in extended attributes.
LOCAL: Final = Fidelity(
    has=_FILE | {Attribute.OWNER, Attribute.XATTRS, Attribute.HOLES},
    keeps=frozenset(Attribute),
)
S3: Final = Fidelity(
    has=_OBJECT | {Attribute.TAGS, Attribute.STORAGE_CLASS},
    keeps=_OBJECT | _FILE | {Attribute.TAGS, Attribute.STORAGE_CLASS},
)
#: A copy that the server makes between two of its buckets lands in the target bucket's own storage class.
S3_BY_THE_SERVER: Final = Fidelity(has=S3.has, keeps=S3.keeps - {Attribute.STORAGE_CLASS})
#: obstore writes tags and cannot read them; storage classes have other names at each provider.
OBSTORE: Final = Fidelity(
    has=_OBJECT | {Attribute.TAGS, Attribute.STORAGE_CLASS},
    keeps=_OBJECT | _FILE,
    hides=frozenset({Attribute.TAGS, Attribute.STORAGE_CLASS}),
)
SFTP: Final = Fidelity(has=_FILE, keeps=_FILE)
#: fsspec has no call that sets anything.
FSSPEC: Final = Fidelity(has=frozenset({Attribute.MTIME}))
