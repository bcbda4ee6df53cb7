# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A program that maps scenes and kills itself at a given moment, as often as it is told to.

Its argument is a checkpoint, a folder of scenes and a folder of maps. Each line it reads is a
moment, such as ``rasters.shutil copy 1``: at the first call of that function, or, of a number
below 0, right after that call. It answers whether it was killed.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from cmid_geo.predict import cog as rasters
from cmid_geo.predict import map_scenes

PLACES = {
    'file': rasters.RasterFile,
    'copy': rasters.shutil,
    'names': rasters,
    'os': os,
}


def kill_at(place: Any, name: str, count: int) -> None:
    call: Callable[..., Any] = getattr(place, name)
    left = [abs(count)]

    def counted(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and count > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **options)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, counted)


def main() -> None:
    checkpoint, scenes, out = sys.argv[1:]
    for line in sys.stdin:
        # Nothing has been computed here yet, so that a fork has no threads to miss
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                place, name, count = line.split()
                kill_at(PLACES[place], name, int(count))
                map_scenes(checkpoint, [scenes], out, size=64, output='both')
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WIFSIGNALED(status), flush=True)


if __name__ == '__main__':
    main()
