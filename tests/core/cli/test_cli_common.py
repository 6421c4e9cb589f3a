"""What the commands share: files of JSON."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from kedit_core.cli import root
from kedit_core.cli.common import write_text


def test_a_file_for_json_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    for place, told in ((tmp_path / "no" / "out.json", "does not exist; make it first"), (tmp_path, "is a folder")):
        done = CliRunner().invoke(
            root.kedit,
            ["edit", "no:model", "-m", "none", "--prompt", "a", "--target", "b", "--json", str(place)],
        )
        assert done.exit_code == 2 and told in done.output and "no:model" not in done.output


def test_a_written_file_may_be_read_by_those_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "out.json", "{}")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o644


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "{}")
        assert pipe.is_fifo() and os.read(reader, 100) == b"{}"
    finally:
        os.close(reader)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_text(tmp_path / "link", "{}")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "{}"
    assert len(list(tmp_path.iterdir())) == 2
