"""Atomic replacement of files."""

import stat

import pytest

from text_gym.files import replace_file


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "state.json"
    for content in (b"first", b"second"):
        before = path.read_bytes() if path.exists() else None
        with replace_file(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "state.json"
    path.write_bytes(b"old")

    def write_half():
        with replace_file(path) as file:
            file.write(b"half of the ne")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_replaced_is_an_error_and_leaves_nothing(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"), replace_file(folder) as file:
        file.write(b"a folder is no file")
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "nowhere" / "file"):
        pass
