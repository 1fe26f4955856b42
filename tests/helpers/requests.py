"""Requests to a server of this machine, as a browser or an attacker sends them."""

import http.client
import json


def ask(server, path="/", method="GET", body=None, host=None, **headers):
    """Send a request, and get its status, its headers and its text."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True)
        for one in [f"127.0.0.1:{server.port}"] if host is None else [host] if isinstance(host, str) else host:
            connection.putheader("Host", one)
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if content is not None and "Content_Length" not in headers:
            connection.putheader("Content-Length", str(len(content)))
        for name, value in headers.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(content)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()
    finally:
        connection.close()


def call(server, token, path, body, **headers):
    """Call a function of a page as the page does, and get its status and what it returns."""
    usual = {"Content_Type": "application/json", "X_Text_Gym_Token": token}
    status, _, text = ask(server, path, "POST", body, **(usual | headers))
    return status, json.loads(text)
