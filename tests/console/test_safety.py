"""Who looks may be shown, and may do, only what is theirs; and nothing that somebody stored becomes script."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Page, expect

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.console.conftest import Look, Serve

KEY, ADMIN = "user-key", "admin-key"

NAMES = [
    "<img src=x onerror=window.hit=1>",
    '"><script>window.hit=1</script>',
    "'-window.hit=1-'",
    "javascript:window.hit=1//",
    "</textarea><svg onload=window.hit=1>",
    "${window.hit=1}{{window.hit=1}}",
    "‮gnp.eman\u0007 % %2e/../#?&",
]


@pytest.fixture
def guarded(serve: Serve) -> ThrowawayServer:
    return serve("--api-key", KEY, "--admin-key", ADMIN)


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector(".state.live")


def screens(page: Page) -> set[str]:
    links = page.get_by_role("navigation").get_by_role("link").all_inner_texts()
    return {text.split("\n")[0] for text in links}


def test_names_that_are_scripts_are_shown_as_they_are(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    for name in NAMES:
        client.queue.publish(name, {name: name}, headers={name: name})
        client.queue.create(name, max_retries=0)
        message = client.queue.consume(name)
        assert message is not None
        client.queue.nack(name, message.message_id, requeue=False)
        client.queue.publish(name, name, headers={name: name})
        client.stream.publish(name, name, {name: name}, metadata={name: name})
        client.kv.set(name, {name: name})
    console = look(server)
    page = console.open("now")
    with SynapClient(url=server.url, transport="native") as listener:
        subscription = listener.pubsub.subscribe([name for name in NAMES if ".." not in name], lambda topic, item: None)
        for screen in ("now", "queues", "streams", "keys", "clients", "workers", "server", "try"):
            console.open(screen)
            page.wait_for_timeout(150)
        console.open("queues")
        for name in NAMES:
            expect(page.get_by_role("grid").get_by_text(name, exact=True).first).to_be_visible()
        for name in NAMES:
            page.get_by_label("Filter queues").fill(name)
            page.get_by_role("grid").get_by_text(name, exact=True).first.click()
            expect(page.get_by_role("heading", level=1)).to_have_text(name)
            page.get_by_role("grid").locator(".row.opens").first.click()
            expect(page.get_by_label("Message", exact=True).first).to_be_visible()
            page.get_by_role("button", name="Delete").click()
            expect(page.get_by_role("dialog").locator("code").first).to_have_text(name)
            page.keyboard.press("Escape")
            console.open("streams")
            page.get_by_role("grid").get_by_text(name, exact=True).first.click()
            page.get_by_role("grid").locator(".row.opens").first.click()
            expect(page.get_by_label("Data", exact=True).first).to_be_visible()
            console.open("keys")
            page.get_by_role("searchbox").fill(name)
            page.get_by_role("grid").locator(".row.opens").first.click()
            console.open("queues")
        subscription.unsubscribe()
    assert page.evaluate("window.hit") is None


def test_an_api_key_sees_no_figures_of_the_whole_and_an_admin_key_does(look: Look, guarded: ThrowawayServer) -> None:
    with SynapClient(url=guarded.url, api_key=KEY) as client:
        client.queue.publish("orders", 1)
    console = look(guarded)
    page = console.page
    page.goto(guarded.url)
    sign_in(page, KEY)
    names = screens(page)
    assert "Queues" in names
    assert not {"Now", "Clients", "Server"} & names
    expect(page.get_by_role("row", name="orders")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, ADMIN)
    assert {"Now", "Clients", "Server"} <= screens(page)


def test_a_wrong_key_is_refused_and_kept_nowhere(look: Look, guarded: ThrowawayServer) -> None:
    console = look(guarded)
    console.expected.append("401")
    page = console.page
    page.goto(guarded.url)
    page.get_by_label("API key").fill("nearly-the-key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not known")
    sign_in(page, ADMIN)
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert ADMIN not in kept
    assert "nearly-the-key" not in kept
    assert "synap_console" not in kept, "the cookie can be read by scripts"
    cookies = console.context.cookies()
    assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]


def test_an_expired_cookie_asks_for_the_key_and_goes_on_where_it_was(look: Look, serve: Serve) -> None:
    service = serve("--admin-key", ADMIN, "--console-session", "12s")
    with SynapClient(url=service.url, api_key=ADMIN) as client:
        client.queue.publish("orders", 1)
    console = look(service)
    console.expected += ["WebSocket connection to", "401"]
    page = console.page
    page.goto(f"{service.url}/#/queues")
    sign_in(page, ADMIN)
    expect(page.get_by_role("row", name="orders")).to_be_visible()
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.get_by_role("row", name="orders")).to_have_count(0)
    sign_in(page, ADMIN)
    expect(page.get_by_role("row", name="orders")).to_be_visible()


EVIL = """<!doctype html><title>evil</title><iframe src="TARGET/"></iframe><script>
const target = "TARGET", found = {};
const told = (response) => "read " + response.status, refused = () => "refused";
window.tried = (async () => {
    const body = JSON.stringify({command: "kv.set", payload: {key: "evil", value: 1}});
    const post = {method: "POST", credentials: "include", body};
    for (const type of ["text/plain", "application/json"])
        found[type] = await fetch(target + "/api/v1/command", {...post, headers: {"Content-Type": type}})
            .then(told, refused);
    found.blind = await fetch(target + "/api/v1/command", {...post, mode: "no-cors"}).then(told, refused);
    found.session = await fetch(target + "/console/session", {credentials: "include"}).then(told, refused);
    found.socket = await new Promise((done) => {
        const socket = new WebSocket(target.replace("http", "ws") + "/api/v1/ws", ["synap.console"]);
        socket.onopen = () => done("open");
        socket.onerror = () => done("refused");
    });
    return found;
})();
</script>"""


@pytest.fixture
def evil(request: pytest.FixtureRequest) -> Iterator[ThreadingHTTPServer]:
    """Somebody else's page, on another port of this machine: to cookies that is the same site."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = EVIL.replace("TARGET", server.target).encode()  # type: ignore[attr-defined]
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("keys", [True, False])
def test_other_origins_pages_can_do_nothing(look: Look, serve: Serve, evil: ThreadingHTTPServer, keys: bool) -> None:
    service = serve(*(["--admin-key", ADMIN] if keys else []))
    evil.target = service.url  # type: ignore[attr-defined]
    console = look(service)
    # The frame of the page, and what is sent blindly, is refused by the browser, which says so.
    console.page.goto(service.url)
    if keys:
        sign_in(console.page, ADMIN)
    elsewhere = console.context.new_page()
    console.context.remove_listener("request", console._request)  # this page is meant to be somewhere else
    elsewhere.goto(f"http://127.0.0.1:{evil.server_address[1]}/")
    found = elsewhere.evaluate("window.tried")
    assert found["text/plain"] == found["application/json"] == "refused", found
    assert found["session"] == found["socket"] == "refused", found
    frame = elsewhere.frames[-1]
    assert "Synap" not in frame.title()
    with SynapClient(url=service.url, api_key=ADMIN if keys else None) as client:
        assert client.kv.exists("evil") is False


def test_who_may_not_manage_is_shown_a_page_to_read(look: Look, guarded: ThrowawayServer) -> None:
    """The service is the one that refuses; the page doesn't even offer."""
    with SynapClient(url=guarded.url, api_key=KEY) as client:
        client.queue.publish("orders", 1)
    console = look(guarded)
    page = console.page

    def reader(route: object) -> None:
        answer = route.fetch()  # type: ignore[attr-defined]
        state = {**answer.json(), "grants": ["queue:read:*", "kv:read:*"] if answer.json()["signed_in"] else []}
        route.fulfill(response=answer, body=json.dumps(state))  # type: ignore[attr-defined]

    page.route("**/console/session", reader)
    page.goto(guarded.url)
    sign_in(page, KEY)
    assert screens(page) == {"Queues", "Keys", "Workers", "Try it"}
    page.get_by_role("row", name="orders").click()
    expect(page.get_by_text("read-only")).to_be_visible()
    for button in ("Publish", "Purge", "Delete", "Settings", "Redrive"):
        expect(page.get_by_role("button", name=button)).to_have_count(0)
