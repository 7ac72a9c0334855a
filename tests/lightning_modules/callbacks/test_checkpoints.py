import errno

import pytest
import torch

from structseg.lightning_modules.callbacks.checkpoints import AtomicCheckpointIO


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    target = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": torch.tensor(1)}, target)

    def fills_up(content, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fills_up)
    with pytest.raises(OSError, match=r"last\.ckpt could not be written .*No space left.*; the previous one is whole"):
        writer.save_checkpoint({"step": torch.tensor(2)}, target)
    assert torch.load(target, weights_only=True)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_first_checkpoint_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda content, file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
    with pytest.raises(OSError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "sub" / "best.ckpt")
    assert not list((tmp_path / "sub").iterdir())


def test_an_interruption_while_a_checkpoint_is_written_is_one(tmp_path, monkeypatch):
    """torch's archive cannot be ended after Ctrl-C and says so by another error, which is no full disk."""
    whole = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, whole)
    before = whole.read_bytes()

    def interrupted(content, file):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert whole.read_bytes() == before
