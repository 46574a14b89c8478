"""Passwords and tokens in URLs are hidden in any text, and put back for the requests of this session alone."""

import fsspec
import pytest

from kleiber.config.url_secrets import (
    VARIABLE,
    hide_secrets,
    map_secrets,
    open_file_system,
    remember_secrets,
    reveal_secrets,
)

HIDDEN = [
    ("http://user:hunter2@host/x.txt", "http://host/x.txt"),
    ("https://hunter2@host:80/x", "https://host:80/x"),
    ("http://user:hunter2'@host/x", "http://host/x"),
    ("http://user:hunter2@at@host/x", "http://host/x"),
    ("http://user:hunter2/a@host/x", "http://host/x"),
    ("http://user:12hunter2@host:3/x", "http://host:3/x"),
    ("ftp://user:hunter2@host/x", "ftp://user@host/x"),
    ("zip://a.txt::https://user:hunter2@host/a.zip", "zip://a.txt::https://host/a.zip"),
    ("https://host/x?X-Amz-Date=3&X-Amz-Signature=hunter2&id=4", "https://host/x?id=4"),
    ("https://host/x?Expires=3&Signature=hunter2&Key-Pair-Id=hunter2", "https://host/x"),
    ("https://host/x?sv=2020&sp=r&se=2030&sig=hunter2", "https://host/x"),
    ("https://host/x?id=4&token=hunter2#part", "https://host/x?id=4#part"),
    ("https://host/x?apikey=hunter2&design=3&keyword=4", "https://host/x?design=3&keyword=4"),
    ("https://host/x?accessToken=hunter2", "https://host/x"),
    ("https://host/x?AWSAccessKeyId=hunter2&id=1", "https://host/x?id=1"),
]
PUBLIC = [
    "http://host/x", "http://host:80/a@b", "s3://bucket/x,y@z", "sftp://user@host/x", "github://org:repo@main/x",
    "abfs://container@account.dfs/x", "https://host/x?id=4&page=2", "https://host/part-?.txt", "hdfs://host:8020/a",
    "memory://x/*.jsonl", "a@b:c/d", "", "https://host/p?q", "[http://a,name@revision]",
]  # fmt: skip
TEXTS = [
    ("data.path='http://user:hunter2,@host/x'", "data.path='http://host/x'"),
    ('data.path="http://user:hunter2\'@host/x"', 'data.path="http://host/x"'),
    ("data=[http://a/x,http://user:hunter2@b/y,http://c:80/z]", "data=[http://a/x,http://b/y,http://c:80/z]"),
    ("+data={path:http://user:hunter2@b/y?key=hunter2}", "+data={path:http://b/y}"),
    ("404, url='http://host/x?sig=hunter2&a=2'", "404, url='http://host/x?a=2'"),
    ("cannot open http://user:hunter2@host/x: refused", "cannot open http://host/x: refused"),
]


@pytest.fixture(autouse=True)
def of_this_test(monkeypatch):
    monkeypatch.setenv(VARIABLE, "{}")


@pytest.mark.parametrize(("text", "hidden"), HIDDEN + TEXTS)
def test_a_secret_is_hidden_wherever_it_stands(text, hidden):
    assert hide_secrets(text) == remember_secrets(text) == hidden == hide_secrets(hidden)


@pytest.mark.parametrize(("url", "hidden"), HIDDEN)
def test_what_was_hidden_is_put_back_in_this_session(url, hidden):
    assert reveal_secrets(hidden) == hidden
    assert reveal_secrets(remember_secrets(url)) == url.replace("#part", "") + "#part" * ("#" in url)


@pytest.mark.parametrize("text", PUBLIC)
def test_a_place_stays_as_it_is(text):
    assert remember_secrets(text) == text == reveal_secrets(text)


def test_other_files_of_the_host_are_opened_with_the_password_and_other_hosts_are_not():
    remember_secrets("http://user:hunter2@host/*.txt")
    assert reveal_secrets("http://host/a.txt") == "http://user:hunter2@host/a.txt"
    for other in ("http://host.evil/a.txt", "https://host/a.txt", "http://host:81/a", "http://evil/http://host/a"):
        assert reveal_secrets(other) == other


def test_a_config_is_changed_at_any_depth_in_values_and_keys():
    url = "http://user:hunter2@host/x"
    config = {"data": {"parts": {url: 0.5, "builtin/docs": 0.5}, "paths": [url, 3, None]}, "seed": 0}
    hidden = {"data": {"parts": {"http://host/x": 0.5, "builtin/docs": 0.5}, "paths": ["http://host/x", 3, None]}}
    assert map_secrets(config, hide_secrets) == {**hidden, "seed": 0}


def test_file_systems_get_the_secrets_back_where_a_request_leaves(monkeypatch):
    hidden = remember_secrets("http://user:hunter2@host/x?token=hunter3")
    system, place = open_file_system(hidden)
    assert place == "http://host/x"
    assert str(system.encode_url(place)) == "http://user:hunter2@host/x?token=hunter3"
    assert str(open_file_system(hidden)[0].encode_url(place)).count("hunter2") == 1, "registered once"
    ftp = remember_secrets("ftp://user:hunter2@host/x")
    open_file_system("memory://x")
    options = fsspec.get_filesystem_class("ftp")._get_kwargs_from_urls(ftp)
    assert (options["username"], options["password"], options["host"]) == ("user", "hunter2", "host")
