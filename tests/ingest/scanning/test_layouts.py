import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ingest.scanning import layouts
from agents.runtime import settings
from bus.errors import UserError

NAME = re.compile(r"[a-z0-9_-]{1,64}")


def folders(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).mkdir(parents=True)
    return base


def roots(
    *model_folders: Path,
    yaml: Path | None = None,
    named: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
) -> dict[str, str]:
    files = [str(yaml)] if yaml else []
    return layouts.roots(
        named or {},
        model_folders=map(str, model_folders),
        extra_model_paths=files,
        environment=environment or {},
    )


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "extra_model_paths.yaml"
    file.write_text(text)
    return file


def below(found: dict[str, str], base: Path) -> dict[str, str]:
    return {name: str(Path(folder).relative_to(base)) for name, folder in found.items()}


def test_an_a1111_folder_becomes_a_root_for_each_folder_of_models_that_is_there(tmp_path: Path):
    base = folders(
        tmp_path / "stable-diffusion-webui",
        *("models/Stable-diffusion", "models/Lora", "models/VAE", "models/ControlNet", "models/ESRGAN"),
        *("embeddings", "outputs", "extensions/sd-webui-controlnet/models", "models/deepbooru"),
    )
    assert below(roots(base), base) == {
        "stable-diffusion-webui-stable-diffusion": "models/Stable-diffusion",
        "stable-diffusion-webui-lora": "models/Lora",
        "stable-diffusion-webui-vae": "models/VAE",
        "stable-diffusion-webui-controlnet": "models/ControlNet",
        "stable-diffusion-webui-esrgan": "models/ESRGAN",
        "stable-diffusion-webui-embeddings": "embeddings",
        "stable-diffusion-webui-controlnet-extension": "extensions/sd-webui-controlnet/models",
    }


@pytest.mark.parametrize("named", [".", "models"])
def test_a_comfyui_folder_may_be_named_itself_or_by_its_models_folder(tmp_path: Path, named: str):
    kinds = ("checkpoints", "loras", "vae", "controlnet", "embeddings", "upscale_models", "text_encoders", "clip")
    kinds += ("unet", "diffusion_models")
    base = folders(tmp_path / "ComfyUI", *(f"models/{kind}" for kind in kinds), "custom_nodes", "models/configs")
    found = below(roots(base / named), base)
    assert found == {f"comfyui-{kind}": f"models/{kind}" for kind in kinds}
    assert next(iter(found)) == "comfyui-checkpoints", "a dropped file goes into the first root"


def test_a_central_folder_arranged_like_models_will_do(tmp_path: Path):
    base = folders(tmp_path / "SD", "checkpoints", "Lora")
    assert below(roots(base), base) == {"sd-checkpoints": "checkpoints", "sd-lora": "Lora"}


def test_a_folder_that_holds_no_models_says_so(tmp_path: Path):
    with pytest.raises(UserError, match=r"models/Stable-diffusion.*mount its disk"):
        roots(folders(tmp_path / "empty", "something"))
    with pytest.raises(UserError, match="nowhere"):
        roots(tmp_path / "nowhere")


def test_comfyuis_own_example_is_read(tmp_path: Path):
    webui = folders(tmp_path / "webui", "models/Stable-diffusion", "models/Lora", "models/LyCORIS", "embeddings")
    yaml = written(
        tmp_path / "ComfyUI",
        f"""
a111:
    base_path: {webui}/
    checkpoints: models/Stable-diffusion
    configs: models/Stable-diffusion
    loras: |
         models/Lora
         models/LyCORIS

    upscale_models: |
                  models/ESRGAN
    embeddings: embeddings
#comfyui:
#    base_path: path/to/comfyui/
other_ui:
""",
    )
    assert below(roots(yaml=yaml), webui) == {
        "a111-checkpoints-stable-diffusion": "models/Stable-diffusion",
        "a111-loras-lora": "models/Lora",
        "a111-loras-lycoris": "models/LyCORIS",
        "a111-embeddings": "embeddings",
    }


def test_paths_begin_at_the_yaml_at_home_or_at_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders(tmp_path, "yaml/near/checkpoints", "yaml/vae", "home/sd/loras", "home/clip", "disk/x/unet", "disk/clip")
    yaml = written(
        tmp_path / "yaml",
        """
relative: {base_path: near, checkpoints: checkpoints/}
none: {vae: vae}
home: {base_path: ~/sd, loras: ./loras, clip: "~/clip\\n${DISK}/clip"}
variable: {base_path: $DISK/x, unet: unet}
""",
    )
    assert below(roots(yaml=yaml, environment={"DISK": str(tmp_path / "disk")}), tmp_path) == {
        "relative-checkpoints": "yaml/near/checkpoints",
        "none-vae": "yaml/vae",
        "home-loras": "home/sd/loras",
        "home-clip": "home/clip",
        f"home-clip-{layouts._digest(str(tmp_path / 'disk/clip'))}": "disk/clip",
        "variable-unet": "disk/x/unet",
    }
    with pytest.raises(UserError, match=r"home\.clip names the environment variable DISK, which is not set"):
        roots(yaml=yaml)


def test_default_sections_come_first(tmp_path: Path):
    folders(tmp_path, "a/loras", "b/loras")
    text = "a: {base_path: a, loras: loras}\nb: {base_path: b, is_default: true, loras: loras}\n"
    assert list(roots(yaml=written(tmp_path, text))) == ["b-loras", "a-loras"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "is not YAML"),
        ("a: 1999-99-99", "is not YAML"),
        ("- a\n- b", "holds no sections"),
        ("", "holds no sections"),
        ("a: models/loras", "section 'a' is no list"),
        ("a: {loras: {x: y}}", r"a\.loras is .*it must be a folder"),
        ("a: {base_path: 3}", r"a\.base_path is 3"),
        ("a: {loras: nowhere}", "none of the folders it names is there"),
        ("a: {base_path: ~nobody-of-this-name/x, loras: x}", "home directory"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("#" * (layouts.YAML_BYTES + 1), "is larger than any"),
        ("a: \xff\udcff", "is not YAML"),
    ],
)
def test_a_broken_yaml_is_one_sentence(tmp_path: Path, text: str, told: str):
    file = tmp_path / "extra_model_paths.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=told) as error:
        roots(yaml=file)
    assert "\n" not in str(error.value)


def test_a_yaml_that_is_not_there_is_told_by_its_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"no\.yaml can't be read \(No such file"):
        roots(yaml=tmp_path / "no.yaml")


def test_a_folder_in_two_sources_is_one_root(tmp_path: Path):
    base = folders(tmp_path / "webui", "models/Lora", "models/Stable-diffusion")
    (tmp_path / "link").symlink_to(base)
    yaml = written(tmp_path, "a: {base_path: link/models, loras: Lora, again: ../models/Lora/}")
    assert list(roots(base, base, yaml=yaml)) == ["webui-stable-diffusion", "webui-lora"]


@pytest.mark.parametrize("order", ["inner: m/loras/xl\n  outer: m/loras", "outer: m/loras\n  inner: m/loras/xl"])
def test_a_folder_inside_another_is_left_to_it_in_whatever_order(tmp_path: Path, order: str):
    folders(tmp_path, "m/loras/xl")
    assert list(roots(yaml=written(tmp_path, f"a:\n  {order}\n")).values()) == [str(tmp_path / "m/loras")]


def test_a_root_that_the_user_named_wins(tmp_path: Path):
    base = folders(tmp_path / "ui", "models/loras", "models/checkpoints", "models/vae", "elsewhere")
    named = {"mine": str(base / "models/loras"), "ui-vae": str(base / "elsewhere")}
    found = roots(base, named=named)
    assert list(found)[:2] == ["mine", "ui-vae"] and found["ui-vae"] == str(base / "elsewhere")
    assert below(found, base)["ui-checkpoints"] == "models/checkpoints"
    assert [name for name, folder in found.items() if folder.endswith("vae")] == [
        f"ui-vae-{layouts._digest(str(base / 'models/vae'))}"
    ]
    assert sorted(found.values()).count(str(base / "models/loras")) == 1
    assert roots(base, named={"all": str(base)}) == {"all": str(base)}


def test_a_root_of_the_users_inside_a_folder_found_is_a_contradiction(tmp_path: Path):
    base = folders(tmp_path / "ui", "models/loras/mine")
    with pytest.raises(UserError, match=r"root 'mine' .* lies inside .*models/loras"):
        roots(base, named={"mine": str(base / "models/loras/mine")})


def test_names_stay_when_other_folders_come_and_go(tmp_path: Path):
    a, b = (folders(tmp_path / disk / "ComfyUI", "models/loras", "models/vae") for disk in "ab")
    both = roots(a, b)
    (a / "models/vae").rmdir()
    assert roots(a, b) == {name: folder for name, folder in both.items() if folder != str(a / "models/vae")}
    text = "x: {loras: 'a/ComfyUI/models/loras\n\n  b/ComfyUI/models/loras'}"
    yaml = written(tmp_path, text)
    both = roots(yaml=yaml)
    assert len(both) == 2
    (a / "models/loras").rmdir()
    assert list(roots(yaml=yaml)) == list(both)[1:]


@given(st.lists(st.text(max_size=300), min_size=1, max_size=6), st.text(max_size=300))
def test_every_name_is_fit_for_a_subject_and_none_is_given_twice(uses: list[str], name: str):
    sources = [
        layouts.Source(name, origin, tuple((use, f"/{origin}/{i}") for i, use in enumerate(uses))) for origin in "ab"
    ]
    found = layouts._named(sources, {"taken": "/taken"})
    assert all(NAME.fullmatch(one) for one in found)
    assert len(found) == 2 * len(uses) and "taken" not in found


def test_settings_resolve_them_beside_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folders(tmp_path, "ComfyUI/models/checkpoints", "yaml/loras", "mine")
    written(tmp_path / "yaml", "x: {loras: loras}")
    (tmp_path / "darkroom.toml").write_text(
        'model_folders = ["ComfyUI"]\nextra_model_paths = ["yaml/extra_model_paths.yaml"]\nroots = {mine = "mine"}\n'
    )
    places = {"comfyui-checkpoints": "ComfyUI/models/checkpoints", "x-loras": "yaml/loras"}
    assert below(settings.load({}, {}).roots, tmp_path) == {"mine": "mine", **places}
    (tmp_path / "darkroom.toml").unlink()
    assert below(settings.load({}, {}).roots, tmp_path) == {"models": "data/models"}
    environment = {"DARKROOM_MODEL_FOLDERS": '["ComfyUI"]'}
    assert below(settings.load({}, environment).roots, tmp_path) == {
        "comfyui-checkpoints": "ComfyUI/models/checkpoints"
    }


def test_a_folder_that_can_not_be_looked_at_is_no_reason_to_fail(tmp_path: Path):
    folders(tmp_path, "open/loras")
    yaml = written(tmp_path, f"a: {{loras: '{'x' * 300}\n\n  open/loras'}}")
    assert list(roots(yaml=yaml).values()) == [str(tmp_path / "open/loras")]


def test_the_models_folder_of_stabilitymatrix_has_its_folders_of_models_as_roots(tmp_path: Path):
    kinds = ("StableDiffusion", "DiffusionModels", "Lora", "LyCORIS", "VAE", "ApproxVAE", "TextEncoders", "ClipVision")
    kinds += ("ControlNet", "T2IAdapter", "Embeddings", "ESRGAN", "RealESRGAN", "SwinIR", "StyleModels", "GLIGEN")
    kinds += ("ModelPatches", "Hypernetwork", "SVD", "AudioEncoders", "IpAdapter")
    others = ("Models/Diffusers", "Models/Ultralytics", "Models/Sams", "Packages")
    base = folders(tmp_path / "Data", *(f"Models/{kind}" for kind in kinds), *others)
    for named in (base, base / "Models"):
        assert below(roots(named), base) == {f"data-{kind.lower()}": f"Models/{kind}" for kind in kinds}


def test_the_names_of_swarmui_and_sdnext_are_known_in_any_case(tmp_path: Path):
    base = folders(tmp_path / "SwarmUI", "Models/Stable-Diffusion", "Models/Embeddings", "Models/diffusion_models")
    assert set(below(roots(base), base).values()) == {
        "Models/Stable-Diffusion",
        "Models/Embeddings",
        "Models/diffusion_models",
    }
    base = folders(tmp_path / "sdnext", "models/UNET", "models/Text-encoder", "models/lora", "models/LORA")
    found = below(roots(base), base)
    assert found["sdnext-unet"] == "models/UNET" and found["sdnext-text-encoder"] == "models/Text-encoder"
    assert {"models/lora", "models/LORA"} < set(found.values()), "two folders are two, whatever they are called"
