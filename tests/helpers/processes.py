# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Processes of tests, from a server that has imported all of the package once."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

# Each process imports for seconds otherwise
multiprocessing.set_forkserver_preload(['cmid_geo.cli'])


def start(function: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
    """Run a function in processes, and wait for them.

    Args:
        function: Of a module, given the number of the process and *args*. It sees the environment
            as it was when the first process started.
        args: Further arguments.
        nprocs: Number of processes.
    """
    torch.multiprocessing.start_processes(
        function, args, nprocs, start_method='forkserver'
    )
