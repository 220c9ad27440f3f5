# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sizes as people write them."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.llamacpp.cluster.plugins.filter.sizes import quota_bytes


@pytest.mark.parametrize(("value", "size"), [("500 GiB", 500 << 30), ("1.5 MiB", 3 << 19), (4096, 4096), (0, 0)])
def test_a_quota(value, size):
    assert quota_bytes(value) == size


@pytest.mark.parametrize("value", ["50 zebras", "", -1, None, True, ["1 GiB"]])
def test_what_is_no_quota_is_refused(value):
    with pytest.raises(AnsibleFilterError, match=r"^llamacpp_x = .*: must be a size, e\.g\. 32 GiB"):
        quota_bytes(value, "llamacpp_x")
