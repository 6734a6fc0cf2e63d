"""A real headless Chromium, driven by its DevTools protocol over a web socket."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

KEYS = {
    'Enter': ('Enter', 13, '\r'),
    'Escape': ('Escape', 27, ''),
    ' ': ('Space', 32, ' '),
    'ArrowRight': ('ArrowRight', 39, ''),
    'ArrowUp': ('ArrowUp', 38, ''),
    'PageDown': ('PageDown', 34, ''),
}


def find_chromium():
    """Return the browser's path, or None."""
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))))


class Chromium:
    """One browser with one page; a context manager."""

    def __init__(self, program, folder: Path):
        self._numbers = itertools.count(1)
        self.process = subprocess.Popen(
            [
                program, '--headless=new', '--no-sandbox', '--disable-gpu', '--mute-audio',
                '--disable-dev-shm-usage', '--no-first-run', '--disable-extensions',
                '--disable-background-networking', '--window-size=1500,1000',
                '--remote-debugging-port=0', f'--user-data-dir={folder}', 'about:blank',
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        port_file = folder / 'DevToolsActivePort'
        deadline = time.monotonic() + 60
        while not port_file.is_file() or not port_file.read_text().strip():
            assert self.process.poll() is None, 'chromium ended'
            assert time.monotonic() < deadline, 'chromium does not start'
            time.sleep(0.05)
        self.port = int(port_file.read_text().split()[0])
        self._socket = None
        self.new_page()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close_page()
        self.process.terminate()
        self.process.wait(20)

    def new_page(self):
        request = urllib.request.Request(
            f'http://127.0.0.1:{self.port}/json/new?about:blank', method='PUT'
        )
        with urllib.request.urlopen(request) as answer:
            url = json.load(answer)['webSocketDebuggerUrl']
        self._socket = connect(url, max_size=None)
        self.send('Page.enable')
        self.send('Network.enable')

    def close_page(self):
        """Close the page as a person closes a tab."""
        if self._socket is not None:
            self.send('Page.close')
            self._socket.close()
            self._socket = None

    def send(self, method, **params):
        number = next(self._numbers)
        self._socket.send(json.dumps({'id': number, 'method': method, 'params': params}))
        while True:
            answer = json.loads(self._socket.recv(60))
            if answer.get('id') == number:
                assert 'error' not in answer, answer
                return answer['result']

    def open(self, url):
        """Open a page anew; headless Chromium holds a second navigation back, but no reload."""
        if self.evaluate('location.href').rstrip('/') == url.rstrip('/'):
            self.evaluate('window.stale = true')
            self.send('Page.reload')
            self.wait_for('!window.stale')
        else:
            self.send('Page.navigate', url=url)

    def evaluate(self, expression):
        answer = self.send(
            'Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def wait_for(self, expression, timeout_s=60.0):
        """Wait until an expression is true, errors meanwhile aside; return its value."""
        deadline = time.monotonic() + timeout_s
        while True:
            value = self.evaluate(f'(() => {{ try {{ return {expression} }} catch (e) {{}} }})()')
            if value:
                return value
            assert time.monotonic() < deadline, f'never: {expression}\n{self.text()}'
            time.sleep(0.02)

    def text(self):
        return self.evaluate('document.body.innerText')

    def wait_text(self, text, timeout_s=60.0):
        self.wait_for(f'document.body.innerText.includes({json.dumps(text)})', timeout_s)

    def key(self, key):
        letter = (f'Key{key.upper()}', ord(key[0].upper()), key)
        code, number, text = KEYS.get(key, letter)
        common = {'key': key, 'code': code, 'windowsVirtualKeyCode': number}
        self.send('Input.dispatchKeyEvent', type='keyDown', text=text, **common)
        self.send('Input.dispatchKeyEvent', type='keyUp', **common)

    def type(self, text):
        self.send('Input.insertText', text=text)

    def click(self, selector):
        self.evaluate(f'document.querySelector({json.dumps(selector)}).click()')

    def screenshot(self, path: Path):
        data = self.send('Page.captureScreenshot', format='png')['data']
        path.write_bytes(base64.b64decode(data))
