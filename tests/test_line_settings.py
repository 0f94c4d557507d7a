"""Settings of the line protocols: those of the documentation, and wrong ones."""

import re
from pathlib import Path

import pytest

from andon.errors import AndonError
from andon.station.config import Config

DOCS = Path(__file__).parents[1] / "docs" / "line-protocols.md"


def test_the_settings_of_the_documentation_are_valid_and_their_paths_lie_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "station.toml"
    file.write_text("\n".join(re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.S)))
    config = Config.load(file)
    assert config.modbus and config.opcua and config.mqtt
    assert config.targets() == ("mqtt", "webhook:erp")
    assert config.mqtt.password_file == tmp_path / "mqtt.password"
    assert config.webhook[0].secret_file == tmp_path / "erp.secret"
    assert config.folder[0].results == tmp_path / "results/ring"
    assert config.opcua.certificate == tmp_path / "station.der"
    assert config.products["cap"].camera == str(tmp_path / "incoming")
    assert config.products["ring"].camera == "genicam:"
    assert {config.modbus.host, config.opcua.host} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("[modbus]\nproducts = []", "modbus.products"),
        ("[modbus]\nport = 70000\nproducts = ['a']", "modbus.port"),
        ("[mqtt]\nprefix = 'a/#'", "mqtt.prefix"),
        ("[mqtt]\nca_file = 'x'", "expected tls = true"),
        ("[mqtt]\npassword = 'x'", "mqtt.password"),
        ("[[webhook]]\nname = 'a'\nurl = 'ftp://x/'", "webhook"),
        ("[[webhook]]\nname = 'a'\nurl = 'http://me:pw@x/'", "webhook"),
        ("[[webhook]]\nname = 'a'\nurl = 'http://x/'\n[[webhook]]\nname = 'A'\nurl = 'http://y/'", "the same name"),
        ("[opcua]\nsecurity = 'Basic128'", "opcua.security"),
        ("[opcua]\nsecurity = 'Basic256Sha256'\ncertificate = 'x'", "expected both or neither"),
        ("[opcua]\ncertificate = 'x'\nprivate_key = 'y'", "without security"),
        ("idle_minutes = -1.0", "idle_minutes"),
        ("[products.a]\ncamera_channels = 2", "camera_channels"),
        ('[pages]\nshifts = ["6:00"]', "pages.shifts: '6:00' is no time of day; expected texts from"),
        ('[pages]\nshifts = ["24:00"]', "'24:00' is no time of day"),
        ("[pages]\nshifts = []", "an empty list; expected one or more different times"),
        ('[pages]\nshifts = ["06:00", "06:00"]', "06:00, 06:00; expected one or more different times"),
        ("[pages]\nshifts = [06:00:00]", "'06:00:00' is no time of day"),
        ("[pages]\nshifts = 6", "'6' is no time of day"),
        ("[products.a]\ncamra = '0'", "products.a.camra: unknown key 'camra'. Did you mean 'camera'?"),
        (
            "".join(
                f"[[folder]]\nproduct = '{p}'\npictures = 'in/{p}'\nresults = '{r}'\n"
                for p, r in (("a", "x"), ("b", "y/../x/"))
            ),
            "two [[folder]] have the same results, 'y/../x', where each would overwrite those of the other",
        ),
        (
            "[products.a]\ncamera = '0'\n[products.b]\ncamera = '0'\ncamera_channels = 1",
            "product 'b' has the camera '0' with camera_channels = 1, and another product has it with 3",
        ),
        ("[[folder]]\nproduct = 'a'\npicture = 'x'", "folder.0.picture: unknown key 'picture'. Did you mean"),
    ],
)
def test_wrong_settings_are_said(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "station.toml"
    file.write_text(text)
    with pytest.raises(AndonError, match=re.escape(said)):
        Config.load(file)


def test_the_same_place_by_an_absolute_and_a_relative_path_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "station.toml"
    entry = "[[folder]]\nproduct = '{0}'\npictures = 'in/{0}'\nresults = '{1}'\n"
    file.write_text(entry.format("a", "x") + entry.format("b", (tmp_path / "x").as_posix()))
    with pytest.raises(AndonError, match="have the same results"):
        Config.load(file)
    file.write_text(f"[products.a]\ncamera = 'in'\n[products.b]\ncamera = '{tmp_path.as_posix()}/y/../in'")
    assert len({each.camera for each in Config.load(file).products.values()}) == 1
