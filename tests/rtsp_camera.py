"""A camera on the network for tests: an RTSP server that sends one film to each player, with RTP inside the TCP connection."""

import contextlib
import re
import socket
import struct
import threading
import time

import av

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=control:track
""".replace("\n", "\r\n")
CODEC = {"tune": "zerolatency", "g": "15", "preset": "ultrafast"}


class Camera:
    """Sends ``pictures`` (uint8 RGB) at ``fps`` to ``times`` players, one after the other. ``stalls``: then it goes silent."""

    def __init__(self, pictures, fps, times=1, stalls=False):
        self.pictures, self.fps, self.times, self.stalls = pictures, fps, times, stalls
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/live"
        self._open = True
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open = False
        self._server.close()

    def _serve(self):
        while self._open and self.times:
            try:
                player, _ = self._server.accept()
            except OSError:
                return
            with player, contextlib.suppress(OSError):
                self._answer(player)
        self._server.close()

    def _answer(self, player):
        file = player.makefile("rb")
        while line := file.readline().decode():
            method, head = line.split(" ")[0], ""
            while (field := file.readline().decode()).strip():
                head += field
            number = re.search(r"CSeq: *(\d+)", head).group(1)
            body = SDP if method == "DESCRIBE" else ""
            more = {
                "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Base: {self.url}/\r\nContent-Length: {len(body)}\r\n",
                "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
                "OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
            }.get(method, "Session: 1\r\n")
            player.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{more}\r\n{body}".encode())
            if method == "PLAY":
                self.times -= 1
                return self._play(player)
        return None

    def _play(self, player):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.bind(("127.0.0.1", 0))
            packets.setblocking(False)
            with av.open(f"rtp://127.0.0.1:{packets.getsockname()[1]}", "w", format="rtp") as container:
                stream = container.add_stream("libx264", rate=self.fps, options=CODEC)
                stream.height, stream.width, _ = self.pictures[0].shape
                stream.pix_fmt = "yuv420p"
                for picture in self.pictures:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                    time.sleep(1 / self.fps)
                    while True:
                        try:
                            data = packets.recv(65536)
                        except BlockingIOError:
                            break
                        player.sendall(struct.pack(">cBH", b"$", 0, len(data)) + data)
        while self.stalls and self._open:
            time.sleep(0.1)
