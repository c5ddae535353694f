"""One spelling of a Redis URL for state, broker and results; what is wrong with one is said without showing it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.connection import Connection as KombuConnection

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.settings import Settings, load_settings
from rebalance_tasks.settings.redis import celery_conf, check_celery_url, check_redis_url, read_address
from rebalance_tasks.store.connection import connect
from rebalance_tasks.store.keys import FleetKeys

if TYPE_CHECKING:
    from pathlib import Path

SENTINEL = "sentinel://user:p%40ss@h1:1,h2,[::1]:3/mymaster/2"


def conf(url: str, **more: Any) -> dict[str, Any]:
    return celery_conf(Settings(redis_url=url, broker_url=url, result_backend=url, **more))


# -- reading ----------------------------------------------------------------------------------------------------------
def test_a_plain_url_is_left_to_the_library_as_it_is() -> None:
    address = read_address("redis://user:p%40ss@db:6380/3?socket_keepalive=true")
    assert address.url == "redis://user:p%40ss@db:6380/3?socket_keepalive=true"
    assert (address.username, address.password, address.db) == ("user", "p@ss", 3)
    assert not address.tls
    assert not address.sentinels


def test_a_tls_url_checks_certificate_and_name_unless_it_says_otherwise() -> None:
    assert read_address("rediss://db").tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    options = "ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_check_hostname=false"
    address = read_address(f"rediss://:pw@db:6380/1?{options}&ssl_cert_reqs=CERT_REQUIRED")
    assert address.url == "rediss://:pw@db:6380/1"
    assert address.tls == {
        "ssl_ca_certs": "/ca.pem",
        "ssl_certfile": "/c.pem",
        "ssl_keyfile": "/k.pem",
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": False,
    }
    assert read_address("rediss://db?ssl_cert_reqs=none").tls == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}


def test_a_sentinel_url_names_sentinels_master_and_database() -> None:
    address = read_address(f"{SENTINEL}?sentinel_username=s&sentinel_password=q%26r")
    assert address.sentinels == (("h1", 1), ("h2", 26379), ("::1", 3))
    assert (address.master, address.db, address.username, address.password) == ("mymaster", 2, "user", "p@ss")
    assert address.sentinel_kwargs["username"] == "s"
    assert address.sentinel_kwargs["password"] == "q&r"  # noqa: S105  made up
    assert read_address("sentinel://h/m").db == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://:hunter2@h", "is not a Redis URL"),
        ("redis://", "is not a Redis URL"),
        ("redis://:hunter2@h:port/0", "percent-encoded"),
        ("redis://:hunter2@h/db1", "no number"),
        ("redis://:hunter2@h?ssl_ca_certs=/x", "rediss://"),
        ("rediss://:hunter2@h?ssl_ca=/x", "unknown option ssl_ca;"),
        ("rediss://:hunter2@h?ssl_cert_reqs=maybe", "required, optional, none"),
        ("rediss://:hunter2@h?ssl_check_hostname=maybe", "neither true nor false"),
        ("sentinel://:hunter2@h1,h2", "hosts and master"),
        ("sentinel://:hunter2@h1:26379;sentinel://h2:26379", "one by one"),
        ("sentinel://:hunter2@h1:x/m", "port that is no number"),
        ("sentinel://:hunter2@h1,,h2/m", "without host"),
        ("sentinel://:hunter2@h1/m/x", "no number"),
        ("sentinel://:hunter2@h1/m?ssl=true", "unknown option ssl;"),
        ("sentinel://:hunter2@h1/m?ssl_ca_certs=/x", "write sentinels://"),
        ("sentinels://:hunter2@h1/m?ssl_ca=/x", "unknown option ssl_ca;"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_showing_it(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as info:
        check_redis_url(url)
    assert "hunter2" not in str(info.value)
    with pytest.raises(ConfigurationError) as told:
        load_settings(environ={"REBALANCE_REDIS_URL": url})
    assert "hunter2" not in str(told.value)
    assert "REBALANCE_REDIS_URL" in str(told.value)
    with pytest.raises(ConfigurationError) as connecting:
        connect(url)
    assert "hunter2" not in str(connecting.value)


@given(st.text(max_size=60), st.sampled_from(["redis", "rediss", "unix", "sentinel", "amqp", ""]))
def test_whatever_is_written_is_read_or_refused(text: str, scheme: str) -> None:
    for check in (check_redis_url, check_celery_url):
        try:
            assert check(f"{scheme}://{text}")
        except ValueError as exc:
            assert str(exc)  # noqa: PT017  any other error is the failure


def test_a_url_for_celery_may_be_of_any_other_kind() -> None:
    assert check_celery_url("amqp://guest@mq//") == "amqp://guest@mq//"
    assert check_celery_url("disabled://") == "disabled://"
    with pytest.raises(ValueError, match="is not a URL"):
        check_celery_url("localhost")
    assert "broker_use_ssl" not in celery_conf(Settings(broker_url="amqps://mq//"))


# -- for Celery -------------------------------------------------------------------------------------------------------
def test_a_sentinel_url_becomes_what_kombu_and_celery_read() -> None:
    made = conf(f"{SENTINEL}?sentinel_password=q")
    each = ["h1:1", "h2:26379", "[::1]:3"]
    expected = ";".join(f"sentinel://user:p%40ss@{host}/2" for host in each)
    assert made["broker_url"] == made["result_backend"] == expected
    for side in ("broker_transport_options", "result_backend_transport_options"):
        assert made[side]["master_name"] == "mymaster"
        assert made[side]["sentinel_kwargs"]["password"] == "q"  # noqa: S105  made up
    with KombuConnection(made["broker_url"]) as kombu:  # type: ignore[no-untyped-call]
        assert (kombu.hostname, kombu.port, kombu.userid, kombu.password) == ("h1", 1, "user", "p@ss")
        assert kombu.virtual_host == "2"
        assert len(kombu.alt) == 3


def test_tls_with_sentinels_goes_to_sentinels_and_servers_alike(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    made = conf(f"sentinels://:pw@h1,h2:3/mymaster/1?ssl_ca_certs={ca}&sentinel_password=q")
    assert made["broker_url"] == "sentinel://:pw@h1:26379/1;sentinel://:pw@h2:3/1"
    assert made["broker_use_ssl"] == made["redis_backend_use_ssl"]
    assert made["broker_use_ssl"]["ssl_cert_reqs"] is ssl.CERT_REQUIRED
    for side in ("broker_transport_options", "result_backend_transport_options"):
        asked = made[side]["sentinel_kwargs"]
        assert (asked["ssl"], asked["ssl_ca_certs"], asked["password"]) == (True, str(ca), "q")
    assert "broker_use_ssl" not in conf("sentinel://h1/mymaster")
    assert "ssl" not in conf("sentinel://h1/mymaster")["broker_transport_options"]["sentinel_kwargs"]


def test_a_tls_url_becomes_arguments_for_both_sides_and_nothing_is_trusted_unseen(tmp_path: Path) -> None:
    made = conf("rediss://:pw@db:6380/1")
    assert made["broker_url"] == made["result_backend"] == "rediss://:pw@db:6380/1"
    assert made["broker_use_ssl"] == made["redis_backend_use_ssl"]
    assert made["broker_use_ssl"] == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    ca = tmp_path / "ca.pem"
    ca.touch()
    assert conf(f"rediss://db?ssl_ca_certs={ca}")["broker_use_ssl"]["ssl_ca_certs"] == str(ca)


def test_a_socket_becomes_what_both_sides_know() -> None:
    made = conf("unix://:p%40ss@/run/redis.sock?db=4")
    assert made["broker_url"] == made["result_backend"] == "redis+socket://:p%40ss@/run/redis.sock?virtual_host=4"
    with Celery(broker=made["broker_url"], backend=made["result_backend"], set_as_current=False) as app:
        assert (app.backend.connparams["path"], app.backend.connparams["db"]) == ("/run/redis.sock", 4)


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = f"rediss://:hunter2@db?ssl_ca_certs={tmp_path}/none.pem"
    for attempt in (lambda: connect(url), lambda: conf(url)):
        with pytest.raises(ConfigurationError, match=r"ssl_ca_certs=.*none\.pem.*not a file") as info:
            attempt()
        assert "hunter2" not in str(info.value)


# -- prefixes ---------------------------------------------------------------------------------------------------------
def test_prefixes_stand_before_all_keys_of_the_state_and_of_celery() -> None:
    assert FleetKeys("f").job("j").base == "rebalance:{f}:job:j"
    assert FleetKeys("f", "acme.r").job("j").base == "acme.r:{f}:job:j"
    made = conf("redis://h", message_prefix="acme")
    assert made["broker_transport_options"] == {"global_keyprefix": "acme:"}
    assert made["result_backend_transport_options"] == {"global_keyprefix": "acme:"}
    assert conf("redis://h")["broker_transport_options"] == {}


@pytest.mark.parametrize("prefix", ["a:b", "a{b", "a*", " a", "a\n", "-a", "a" * 65, "ä"])
@pytest.mark.parametrize("name", ["key_prefix", "message_prefix"])
def test_a_prefix_that_a_pattern_or_a_cluster_would_misread_is_refused(name: str, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        load_settings(environ={f"REBALANCE_{name.upper()}": prefix})


def test_the_state_needs_a_prefix() -> None:
    with pytest.raises(ValueError, match="key_prefix"):
        Settings(key_prefix="")
