"""Shares a file through a running peer, over the socket that only its owner can open.

python control.py ~/.local/share/potluck/peer-12349/control.sock /data/model.bin
"""

import sys

import grpc
from potluck.v1 import control_pb2, control_pb2_grpc

peer = control_pb2_grpc.ControlServiceStub(grpc.insecure_channel(f"unix:{sys.argv[1]}"))
print("peer", peer.GetStatus(control_pb2.GetStatusRequest()).peer_id.hex())
for event in peer.Share(control_pb2.ShareRequest(paths=[sys.argv[2]])):
    print(event)
