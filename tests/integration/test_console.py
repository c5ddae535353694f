"""The console's HTTP API and pages over a real fleet: who may what, what it answers, and what it never lets through."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from rebalance_tasks.console import app as console
from rebalance_tasks.console.access import Role, Tokens
from rebalance_tasks.console.app import API, make_app
from rebalance_tasks.console.assets import STATIC, Assets
from rebalance_tasks.console.endpoints import ENDPOINTS
from rebalance_tasks.console.headers import SECURITY_HEADERS
from rebalance_tasks.console.pages import PAGES
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from tests.support.arena import context_of, objects, rebalancer_of
from tests.support.consoles import OPERATOR, VIEWER
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from httpx2 import Response

    from rebalance_tasks import Rebalancer
    from rebalance_tasks.console.calls import Endpoint
    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "http-api.md"
#: Key and rack that would be markup, if they were let.
MARKUP = "<img src=x onerror=alert(1)>"
#: A body that each endpoint's model takes.
BODIES: dict[str, dict[str, Any]] = {"/jobs": {"plan_id": "plan-1"}}


@pytest.fixture
def rebalancer(fleet_config: FleetFactory) -> Rebalancer:
    secret = {"password": "s3cret-of-the-node"}
    made = fleet_config(
        {
            "a": NodeSpec({**objects(20, 1000), f"x/{MARKUP}": 1000}, 40_000, {"zone": "z1", "rack": MARKUP}),
            "b": NodeSpec({}, 40_000, {"zone": "z2", "storage_options": secret}),
            "c": NodeSpec({}, 40_000, {"zone": "z2"}),
        },
        fleet={"mode": "observe"},
    )
    return rebalancer_of(made)


@contextmanager
def browser_of(rebalancer: Rebalancer, token: str = "") -> Iterator[TestClient]:
    """A client of the console, logged in with a token."""
    app = make_app(rebalancer, Tokens(viewer=VIEWER, operator=OPERATOR))
    with TestClient(app, base_url="http://console.test", follow_redirects=False, raise_server_exceptions=False) as made:
        if token:
            assert made.post("/login", data={"token": token}).status_code == 303
            made.headers["x-csrf-token"] = csrf_of(made)
        yield made


def csrf_of(client: TestClient) -> str:
    found = re.search(r'<meta name="csrf" content="([^"]+)"', client.get("/").text)
    assert found is not None
    return found[1]


def call(client: TestClient, endpoint: Endpoint, **more: Any) -> Response:
    """Call an endpoint with something that its model takes."""
    path = API + endpoint.path.replace("{name}", "a")
    if endpoint.method == "GET":
        query = "?key=k" if "explain" in path else ""
        return client.get(path + query, **more)
    return client.post(path, json=BODIES.get(endpoint.path, {}), **more)


def told(response: Response) -> tuple[int, str]:
    return response.status_code, response.json()["cause"]


# -- who may what ----------------------------------------------------------------------------------------------------
def test_without_a_token_nothing_answers(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer) as client:
        for endpoint in ENDPOINTS:
            assert told(call(client, endpoint)) == (401, "unauthenticated"), endpoint.path
        for path in (f"{API}/session", f"{API}/events"):
            assert told(client.get(path)) == (401, "unauthenticated")
        for path in PAGES:
            page = client.get(path.replace("{name}", "a"))
            assert page.status_code == 401
            assert 'name="token"' in page.text
        assert client.get("/healthz").json() == {"ok": True}


def test_a_viewer_looks_and_does_not_act(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, VIEWER) as client:
        for endpoint in ENDPOINTS:
            status = call(client, endpoint).status_code
            assert (status == 403) is (endpoint.role is Role.OPERATOR), endpoint.path
    assert rebalancer.jobs() == []
    assert context_of(rebalancer).fleet.node_states() == {}


def test_every_endpoint_that_acts_asks_for_the_operator() -> None:
    assert {endpoint.role for endpoint in ENDPOINTS if endpoint.method == "POST"} == {Role.OPERATOR}


def test_a_write_without_the_csrf_header_or_from_another_site_is_refused(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, OPERATOR) as client:
        good = client.headers.pop("x-csrf-token")
        for headers in (
            {},
            {"x-csrf-token": "guess"},
            {"x-csrf-token": good, "origin": "http://evil.test"},
            {"x-csrf-token": good, "origin": "null"},
        ):
            answer = client.post(f"{API}/fleet/pause", json={}, headers=headers)
            assert told(answer) == (403, "csrf"), headers
        assert context_of(rebalancer).fleet.paused_reasons() == set()
        headers = {"x-csrf-token": good, "origin": "http://console.test"}
        assert client.post(f"{API}/fleet/pause", json={}, headers=headers).status_code == 200
        assert client.post("/login", data={"token": VIEWER}, headers={"origin": "http://evil.test"}).status_code == 403


def test_a_program_uses_a_bearer_token_and_no_cookie(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer) as client:
        ok = {"authorization": f"Bearer {OPERATOR}"}
        assert client.get(f"{API}/session", headers=ok).json() == {"role": "operator"}
        assert client.post(f"{API}/fleet/pause", json={}, headers=ok).status_code == 200
        assert told(client.get(f"{API}/session", headers={"authorization": "Bearer wrong"})) == (401, "unauthenticated")


def test_guessing_is_slowed_down_and_says_for_how_long(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer) as client:
        answers = [client.post("/login", data={"token": f"guess-{number}"}) for number in range(11)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429]
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        # The right one has to wait as well, or waiting would tell it apart.
        assert client.post("/login", data={"token": OPERATOR}).status_code == 429


def test_the_session_cookie_is_out_of_reach_for_scripts_and_other_sites(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer) as client:
        cookie = client.post("/login", data={"token": VIEWER}).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert VIEWER not in cookie
        client.headers["x-csrf-token"] = csrf_of(client)
        session = client.cookies["rebalance_session"]
        assert client.post("/logout").status_code == 204
        client.cookies.set("rebalance_session", session)
        assert client.get("/").status_code == 401


@pytest.mark.parametrize(
    ("wanted", "leads_to"),
    [
        ("/plans/plan-1", "/plans/plan-1"),
        ("//evil.test", "/"),
        ("https://evil.test/", "/"),
        ("/jobs/../logout", "/"),
        ("/jobs/a\r\nx: y", "/"),
    ],
)
def test_a_login_leads_only_to_pages_of_the_console(rebalancer: Rebalancer, wanted: str, leads_to: str) -> None:
    with browser_of(rebalancer) as client:
        answer = client.post("/login", data={"token": VIEWER, "next": wanted})
        assert answer.headers["location"] == leads_to


# -- what it lets through --------------------------------------------------------------------------------------------
def test_every_answer_carries_the_strict_headers(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, VIEWER) as client:
        static = f"/static/{Assets().digest}/console.css"
        for path in ("/", "/nowhere", "/healthz", f"{API}/fleet", f"{API}/nowhere", static, "/static/x/console.css"):
            headers = client.get(path).headers
            assert {name: headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS, path
            assert headers["cache-control"].startswith("private, max-age" if path == static else "no-store"), path
    policy = SECURITY_HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("name", ["%2e%2e", "a%2f..%2fb", "a%00", "%3Cb%3E", "a" * 129, "-x", "a%0d%0ab"])
def test_ids_that_are_no_ids_are_refused_before_they_name_anything(rebalancer: Rebalancer, name: str) -> None:
    with browser_of(rebalancer, OPERATOR) as client:
        for path in (f"{API}/jobs/{name}", f"{API}/nodes/{name}", f"/jobs/{name}", f"/static/{Assets().digest}/{name}"):
            assert client.get(path).status_code in {400, 404}, path
        assert client.post(f"{API}/nodes/{name}/drain", json={}).status_code in {400, 404, 405}


def test_static_files_end_at_their_folder(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, VIEWER) as client:
        for path in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "..%5capp.py"):
            assert client.get(f"/static/{Assets().digest}/{path}").status_code == 404, path


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"[]", "invalid_argument"),
        (b"{", "invalid_argument"),
        (b"\xff", "invalid_argument"),
        (b'{"plan_id": "../x"}', "invalid_argument"),
        (b'{"plan_id": "p", "surprise": 1}', "invalid_argument"),
        (b'{"plan_id": "' + b"x" * 70_000 + b'"}', "invalid_argument"),
        (b'{"plan_id": "unknown"}', "plan_not_found"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(rebalancer: Rebalancer, body: bytes, cause: str) -> None:
    with browser_of(rebalancer, OPERATOR) as client:
        answer = client.post(f"{API}/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in {400, 404}
        assert answer.json()["cause"] == cause
        form = client.post(f"{API}/jobs", data={"plan_id": "p"})
        assert told(form) == (400, "invalid_argument")


def test_an_unknown_or_bad_query_names_itself(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, VIEWER) as client:
        for query in ("limit=-1", "offset=x", "sort=size", "colour=red"):
            answer = client.get(f"{API}/nodes?{query}")
            assert answer.status_code == 400
            assert query.partition("=")[0] in answer.json()["error"]


def test_markup_stays_data_in_the_api_and_never_reaches_a_page(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, OPERATOR) as client:
        plan = client.post(f"{API}/plans", json={}).json()
        moves = client.get(f"{API}/plans/{plan['plan_id']}/moves?limit=1000").json()
        assert any(move["object_key"] == f"x/{MARKUP}" for move in moves["items"]) or plan["moves"] < 21
        nodes = client.get(f"{API}/nodes")
        assert nodes.headers["content-type"] == "application/json"
        assert nodes.json()["items"][0]["rack"] == MARKUP
        for path in PAGES:
            assert MARKUP not in client.get(path.replace("{name}", "a")).text


def test_no_secret_is_in_any_answer_page_or_log(rebalancer: Rebalancer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with browser_of(rebalancer, OPERATOR) as client:
        answers = [client.post("/login", data={"token": f"{OPERATOR}-mistyped"}).text]
        client.post(f"{API}/fleet/pause", json={})
        assert "console.acted" in caplog.text
        session, csrf = client.cookies["rebalance_session"], client.headers["x-csrf-token"]
        answers += [call(client, endpoint).text for endpoint in ENDPOINTS if endpoint.method == "GET"]
        answers += [client.get(path.replace("{name}", "b")).text for path in PAGES]
    for secret in ("s3cret-of-the-node", OPERATOR, VIEWER, "storage_options", session):
        assert not any(secret in answer for answer in (*answers, caplog.text))
    assert csrf not in caplog.text


def test_a_defect_shows_no_inner_detail(rebalancer: Rebalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        msg = "inner detail with s3cret"
        raise RuntimeError(msg)

    with browser_of(rebalancer, VIEWER) as client:
        monkeypatch.setattr(rebalancer, "jobs", broken)
        answer = client.get(f"{API}/jobs")
    assert told(answer) == (500, "defect")
    assert "inner" not in answer.text


# -- what it answers -------------------------------------------------------------------------------------------------
def test_a_fleet_is_seen_planned_started_paused_resumed_and_cancelled(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, OPERATOR) as client:

        def get(path: str) -> Any:
            return client.get(API + path).json()

        def post(path: str, **body: Any) -> Any:
            answer = client.post(API + path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        assert get("/fleet")["surveyed"] is False
        checked = post("/checks")
        assert checked["verdict"] == "planned"
        fleet = get("/fleet")
        assert fleet["imbalance"] == pytest.approx(0.525)
        assert fleet["node_states"] == {"active": 3, "draining": 0, "maintenance": 0}
        plan = get(f"/plans/{checked['plan_id']}")
        assert sum(flow["bytes"] for flow in plan["flows"]) == plan["estimated_egress_bytes"]
        assert get("/plans")["items"][0]["plan_id"] == plan["plan_id"]
        assert get("/checks")["items"][0]["plan_id"] == plan["plan_id"]
        job = post("/jobs", plan_id=plan["plan_id"])
        assert get("/fleet")["active_job"] == job["job_id"]
        path = f"/jobs/{job['job_id']}"
        assert post(f"{path}/pause")["status"] == "paused"
        assert get(path)["paused_reasons"] == ["operator"]
        assert post(f"{path}/resume")["status"] == "running"
        again = client.post(f"{API}{path}/resume", json={})
        assert told(again) == (409, "refused")
        assert told(client.post(f"{API}/plans", json={})) == (409, "job_active")
        post(f"{path}/cancel")
        Engine().finish(job["job_id"])
        assert get(path)["status"] == "cancelled"
        entries = get(f"{path}/timeline")["items"]
        # "started" comes from the job itself, and only where a group was let in before the cancel.
        words = [entry["what"] for entry in entries if entry["what"] != "started"]
        assert words == ["created", "paused", "resumed", "cancel_requested", "cancelled"]
        assert all("by console:operator@" in entry["text"] for entry in entries if "by " in entry["text"])
        assert rebalancer.status(job["job_id"]).requested_by.startswith("console:operator@")
        assert get(f"{path}/failures")["items"][0]["cause"] == "cancelled"
        assert get("/jobs")["total"] == 1
        retried = post(f"{path}/retry", skipped=True)
        assert retried["job_id"] == f"{job['job_id']}-retry1-skipped"


def test_an_object_is_explained_and_an_unknown_one_is_not_found(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, OPERATOR) as client:
        plan = client.post(f"{API}/plans", json={}).json()
        path = f"{API}/plans/{plan['plan_id']}/explain"
        assert client.get(path, params={"key": "o/0001.bin"}).json()["node_id"] == "a"
        assert told(client.get(path, params={"key": "nowhere"})) == (404, "object_not_found")


def test_a_node_is_drained_only_when_it_fits_or_is_forced(rebalancer: Rebalancer) -> None:
    with browser_of(rebalancer, OPERATOR) as client:

        def post(verb: str, **body: Any) -> Response:
            return client.post(f"{API}/nodes/a/{verb}", json=body)

        assert client.get(f"{API}/nodes/a/drain-check").json()["fits"] is True
        assert post("maintenance").json()["state"] == "maintenance"
        assert client.get(f"{API}/nodes/a").json()["state"] == "maintenance"
        assert client.get(f"{API}/nodes/a/activation-check").json()["fits"] is True
        assert client.get(f"{API}/nodes/a").json()["state"] == "maintenance"
        assert post("activate").json()["state"] == "active"
        assert post("pause").status_code == 200
        assert client.get(f"{API}/nodes/a").json()["held_by"] == ["operator"]
        assert post("resume").status_code == 200
        for other in ("b", "c"):
            client.post(f"{API}/nodes/{other}/maintenance", json={})
        assert told(post("drain")) == (409, "refused")
        assert post("drain", force=True).json()["state"] == "draining"
        assert told(client.get(f"{API}/nodes/unknown")) == (404, "unknown_node")


def test_a_missing_node_shows_as_such(rebalancer: Rebalancer, tmp_path: Path) -> None:
    rebalancer.adopt()
    (tmp_path / "nodes" / "b").rename(tmp_path / "gone")
    with browser_of(rebalancer, VIEWER) as client:
        node = client.get(f"{API}/nodes/b").json()
        assert (node["status"], "b" in node["detail"]) == ("missing", True)
        assert client.get(f"{API}/fleet").json()["troubled_nodes"] == ["b"]


def test_rows_come_in_pages_filtered_and_in_order(rebalancer: Rebalancer) -> None:
    moves = tuple(
        RebalanceMove(object_key=f"k/{number:05d}", source_node="a", target_node="bc"[number % 2], size_bytes=1)
        for number in range(3000)
    )
    plan = RebalancePlan(plan_id="many", fleet="test", moves=moves)
    context_of(rebalancer).plans.save(plan, fence=None)
    with browser_of(rebalancer, VIEWER) as client:

        def rows(**query: Any) -> tuple[int, list[str]]:
            answer = client.get(f"{API}/plans/many/moves", params=query).json()
            return answer["total"], [move["object_key"] for move in answer["items"]]

        assert rows(offset=2999, limit=10) == (3000, ["k/02999"])
        assert rows(limit=5000)[1] == [move.object_key for move in moves[:1000]]
        assert rows(q="K/0000", limit=1) == (10, ["k/00000"])
        assert rows(target="c", limit=1) == (1500, ["k/00001"])
        assert rows(q="none") == (0, [])
        names = client.get(f"{API}/nodes?sort=name&limit=2&offset=1").json()
        assert [node["node_id"] for node in names["items"]] == ["b", "c"]
        assert client.get(f"{API}/nodes?q=Z2").json()["total"] == 2


# -- the documentation and the weight --------------------------------------------------------------------------------
def test_every_endpoint_is_in_the_reference_and_nothing_else() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(GET|POST) (/\S+)` \| (viewer|operator) \| ([^|]*) \| (.*) \|$", text, re.MULTILINE)
    documented = [(method, path, role, takes.strip(), summary) for method, path, role, takes, summary in rows]
    assert documented == [
        (
            endpoint.method,
            endpoint.path,
            endpoint.role.value,
            ", ".join(f"`{name}`" for name in endpoint.takes.model_fields),
            endpoint.summary,
        )
        for endpoint in ENDPOINTS
    ]
    for path in (*PAGES, "/login", "/logout", "/healthz", f"{API}/session", f"{API}/events"):
        assert f"`{path}`" in text, path
    assert f"`{API}`" in text


def test_the_statuses_of_errors_are_documented() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for kind, status in console._STATUSES:
        assert re.search(rf"^\| {status} \|.*`{kind.cause}`", text, re.MULTILINE), (status, kind.cause)


def test_the_first_view_is_light(rebalancer: Rebalancer) -> None:
    """What a browser fetches before the fleet is there: the page, its sheet, its modules, and three answers of the API."""
    with browser_of(rebalancer, VIEWER) as client:
        total = len(client.get("/").content)
        total += sum(len(client.get(f"{API}{path}").content) for path in ("/fleet", "/nodes", "/checks?limit=200"))
    for name in ("console.css", "icon.svg", "theme.js", "fleet.js", "api.js", "dom.js", "charts.js"):
        total += (STATIC / name).stat().st_size
    assert total <= 150_000


def test_pages_load_nothing_from_elsewhere_and_run_nothing_inline() -> None:
    for file in (*STATIC.iterdir(), *(STATIC.parent / "templates").iterdir()):
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//cdn|innerHTML|outerHTML|insertAdjacentHTML|\beval\(|document\.write", text), (
            file
        )
        if file.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|\|\s*safe", text), file
            assert not re.search(r"<script(?![^>]*\ssrc=)", text), file
