"""Who is missing in a round."""

from __future__ import annotations

import pytest

from fedskew.federation.selection import missing_names


@pytest.mark.parametrize(
    ("known", "connected", "missing"),
    [
        ({1: "site-a", 2: "site-b"}, {2: "site-b"}, ["site-a"]),
        ({1: "site-a", 2: "site-b"}, {2: "site-b", 3: "site-a"}, []),  # its key was replaced
        ({1: "site-a", 3: "site-a"}, {2: "site-b"}, ["site-a"]),  # gone, under both ids
        ({1: "node-0", 2: "node-1"}, {2: ""}, ["node-0"]),  # a simulation: no registered names
        ({1: "node-0", 2: "node-1"}, {1: "", 2: ""}, []),
        ({}, {1: "site-a"}, []),
    ],
)
def test_a_site_is_missing_if_it_is_there_under_no_id(known, connected, missing):
    assert missing_names(known, connected) == missing
