"""What a URL of a study database becomes: its driver, what to install for it, and how long it waits for a connection."""

from __future__ import annotations

import pytest

from sweeper.errors import ResourceError
from sweeper.spec.checks import check
from sweeper.study.database import masked
from sweeper.study.drivers import ALLOWED, engine_options, package_of, parse
from tests.study.study_helpers import make_spec


@pytest.mark.parametrize(
    ("url", "drivername", "package", "wait"),
    [
        ("sqlite:////home/me/study.db", "sqlite", "", {"timeout": 30}),
        ("postgresql://me@here/x", "postgresql+psycopg", "sweeper[postgres]", {"connect_timeout": 10}),
        ("postgresql+psycopg2://me@here/x", "postgresql+psycopg2", "psycopg2-binary", {"connect_timeout": 10}),
        ("postgresql+pg8000://me@here/x", "postgresql+pg8000", "pg8000", {}),
        ("mysql://me@here/x", "mysql+pymysql", "sweeper[mysql]", {"connect_timeout": 10}),
        ("mariadb://me@here/x", "mysql+pymysql", "sweeper[mysql]", {"connect_timeout": 10}),
        ("mariadb+pymysql://me@here/x", "mysql+pymysql", "sweeper[mysql]", {"connect_timeout": 10}),
        ("mysql+mysqldb://me@here/x", "mysql+mysqldb", "mysqlclient", {"connect_timeout": 10}),
        ("mysql+mysqlconnector://me@here/x", "mysql+mysqlconnector", "mysql-connector-python", {"connection_timeout": 10}),
        ("mysql://me@here/x?connect_timeout=3", "mysql+pymysql", "sweeper[mysql]", {}),
    ],
)
def test_a_url_gets_its_driver(url: str, drivername: str, package: str, wait: dict[str, int]) -> None:
    parsed = parse(url)
    assert parsed.drivername == drivername
    assert package_of(parsed) == package
    arguments = engine_options(parsed)["connect_args"]
    assert {key: value for key, value in arguments.items() if key != "charset"} == wait
    assert ("charset" in arguments) == drivername.startswith("mysql")


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///x.db", "postgresql+asyncpg://here/x", "mysql+asyncmy://here/x"])
def test_a_driver_that_nobody_tried_is_refused_with_those_that_work(url: str) -> None:
    with pytest.raises(ResourceError, match="which Sweeper does not know; allowed for"):
        parse(url)


def test_a_password_among_the_parameters_is_masked_as_well() -> None:
    shown = masked(parse("mysql://me:hunter2@here/x?password=hunter3&unix_socket=/run/s"))
    assert "hunter" not in shown
    assert "unix_socket" in shown


def test_a_spec_may_name_what_a_study_can_live_in_and_nothing_else() -> None:
    for family in (*ALLOWED, "mssql", "oracle"):
        problems = [problem for problem in check(make_spec(storage=f"{family}://here/x")) if problem.path == "storage"]
        assert (problems == []) == (family in ALLOWED), family
