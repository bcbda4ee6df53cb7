# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import os
import resource
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from PIL import Image
from rasterfiles import noise, truncate, write
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from torchgeo.datasets import DatasetNotFoundError

from cmid_geo.datamodules import ChangeDataModule, SegmentationDataModule
from cmid_geo.datasets import Chip, RandomChips, SceneDataset
from cmid_geo.datasets.change import ChangePairs
from cmid_geo.datasets.coco import CocoDetection
from cmid_geo.datasets.dota import OrientedChips
from cmid_geo.datasets.images import read_image
from cmid_geo.datasets.masks import MaskDataset
from cmid_geo.predict.inputs import open_source


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match='specify a different `paths`'):
        SceneDataset(tmp_path)
    with pytest.raises(ValueError, match='check the spelling'):
        SceneDataset(tmp_path / 'missing')
    with pytest.raises(ValueError, match='no file matches'):
        SceneDataset([str(tmp_path / '*.tif')])


@pytest.mark.parametrize('damage', ['truncated', 'garbage'])
def test_damaged(tmp_path: Path, damage: str) -> None:
    write(tmp_path / 'good.tif', noise(3, 256, 256))
    bad = write(tmp_path / 'bad.tif', noise(3, 256, 256), interleave='band')
    truncate(bad) if damage == 'truncated' else bad.write_bytes(b'no raster')
    with pytest.raises(ValueError, match=r'bad.tif.*skip_unreadable=True'):
        SceneDataset(tmp_path)
    with pytest.warns(UserWarning, match=r'skipped .*bad.tif'):
        dataset = SceneDataset(tmp_path, skip_unreadable=True)
    assert [Path(path).name for path in dataset.files] == ['good.tif']
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match='at least one scene must be whole'),
    ):
        SceneDataset(bad, skip_unreadable=True)


def test_words_of_gdal_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / 'a.vrt').write_bytes(b'<VRTDataset a=\xff><b\xdf></VRTDataset>')
    with pytest.raises(ValueError, match=r'a.vrt.* cannot be read .*replace or remove'):
        SceneDataset(tmp_path / 'a.vrt')


def test_a_scene_without_valid_ground_gives_no_chip(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', np.zeros((1, 64, 64), np.uint8), nodata=0)
    with pytest.raises(
        ValueError, match=r'no scene to draw chips from.*a.tif.*0% valid'
    ):
        RandomChips(SceneDataset(tmp_path), 32, 1, min_valid=0.0)


def test_pixels_too_small_for_numbers_are_refused(tmp_path: Path) -> None:
    place = Affine(9.8e-311, 0, 5e5, 0, -2.7e154, 5e6)
    write(tmp_path / 'a.tif', noise(1, 64, 64), transform=place)
    with pytest.raises(ValueError, match=r'a.tif.*geotransform.*finite place'):
        SceneDataset(tmp_path)


def test_damaged_later(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(3, 512, 512))
    dataset = SceneDataset(tmp_path)
    truncate(path)
    with pytest.raises(ValueError, match=r'cannot read .*a.tif.*replace it'):
        dataset[Chip((0,), 0, 0, 512, 512)]


def test_no_crs(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(1, 64, 64), crs=None)
    with pytest.raises(ValueError, match=r'a.tif.*no coordinate.*file_crs='):
        SceneDataset(tmp_path, crs='EPSG:32633')
    write(tmp_path / 'b.tif', noise(1, 64, 64), crs='EPSG:32632')
    dataset = SceneDataset(tmp_path, file_crs='EPSG:32633')
    assert dataset.crs == 'EPSG:32633' and dataset.scenes[1].needs_warp
    # What it is warped to is another thing
    warped = SceneDataset(path, crs='EPSG:32632', file_crs='EPSG:32633')
    assert warped.crs == 'EPSG:32632' and warped.scenes[0].needs_warp
    with pytest.raises(ValueError, match=r"file_crs='here' is no .*EPSG:32633"):
        SceneDataset(path, file_crs='here')


def test_no_bands(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(1, 64, 64))
    with pytest.raises(ValueError, match='bands=None for all'):
        SceneDataset(tmp_path, bands=[])


def test_complex(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(1, 64, 64, dtype='complex64'))
    with pytest.raises(ValueError, match=r'complex64.*amplitude'):
        SceneDataset(tmp_path)


def test_damage_in_the_middle_is_found_where_it_may_be_skipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ('bad', 'good'):
        with rasterio.open(
            tmp_path / f'{name}.tif', 'w', driver='GTiff', width=512, height=512, count=1, dtype='uint8',
            crs='EPSG:32633', transform=rasterio.transform.from_origin(0, 0, 1, 1), tiled=True,
            blockxsize=128, blockysize=128, compress='deflate',
        ) as file:  # fmt: skip
            file.write(rng.integers(1, 255, (1, 512, 512), dtype='uint8'))
    whole = bytearray((tmp_path / 'bad.tif').read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 20_000] = bytes(20_000)
    (tmp_path / 'bad.tif').write_bytes(whole)
    with pytest.warns(UserWarning, match=r'skipped .*bad\.tif'):
        dataset = SceneDataset(tmp_path, skip_unreadable=True)
    assert [Path(scene.files[0]).name for scene in dataset.scenes] == ['good.tif']


def spoil(path: Path, tag: int, values: list[float]) -> None:
    """Write other numbers over a TIFF's tag of doubles."""
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from('<I', content, 4)
    (count,) = struct.unpack_from('<H', content, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        name, _, _, place = struct.unpack_from('<HHII', content, entry)
        if name == tag:
            struct.pack_into(f'<{len(values)}d', content, place, *values)
            path.write_bytes(content)
            return
    raise KeyError(tag)


#: Number of the tag of pixel sizes, and of that of the upper left corner.
SCALE, TIEPOINT = 33550, 33922

NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
    ('tag', 'values'),
    [
        (SCALE, [NAN, NAN, 0]), (SCALE, [INF, 10, 0]), (SCALE, [1e-320, 10, 0]),
        (SCALE, [1e200, 1e200, 0]), (TIEPOINT, [0, 0, 0, NAN, 5e6, 0]),
        (TIEPOINT, [0, 0, 0, INF, 5e6, 0]), (SCALE, [1e308, 10, 0]), (SCALE, [0, 0, 0]),
    ],
)  # fmt: skip
def test_odd_geotransforms(tmp_path: Path, tag: int, values: list[float]) -> None:
    write(tmp_path / 'a.tif', noise(1, 64, 64))
    bad = write(tmp_path / 'bad.tif', noise(1, 64, 64))
    spoil(bad, tag, values)
    with pytest.raises(ValueError, match=r'bad\.tif.* geotransform.*gdal_translate'):
        SceneDataset(tmp_path)
    with pytest.warns(UserWarning, match=r'skipped .*bad\.tif'):
        assert len(SceneDataset(tmp_path, skip_unreadable=True)) == 1


def test_oblique_geotransform_without_inverse(tmp_path: Path) -> None:
    write(tmp_path / 'bad.tif', noise(1, 64, 64), transform=Affine(1, 1, 5, 1, 1, 5))
    with pytest.raises(ValueError, match=r'bad\.tif.* has the geotransform'):
        SceneDataset(tmp_path)


def test_coordinates_that_the_crs_does_not_know(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(1, 64, 64))
    write(tmp_path / 'b.tif', noise(1, 64, 64), crs='EPSG:4326')
    with pytest.raises(ValueError, match=r'b\.tif.*cannot be brought from .*WGS 84'):
        SceneDataset(tmp_path)
    # Nor is it the first that decides where it cannot be brought to the CRS wanted
    os.rename(tmp_path / 'b.tif', tmp_path / '0.tif')
    with pytest.warns(UserWarning, match=r'skipped .*0\.tif'):
        dataset = SceneDataset(tmp_path, crs='EPSG:32633', skip_unreadable=True)
    assert [Path(file).name for file in dataset.files] == ['a.tif']
    assert dataset.res == (10, 10)


def huge_tile(path: Path) -> Path:
    """Write a TIFF of a few hundred bytes that declares one tile of 900 MB."""
    side, tags = 30_000 // 16 * 16, []
    for tag, kind, value in (
        (256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, side), (323, 4, side), (324, 4, 400), (325, 4, 8), (339, 3, 1),
        (SCALE, 12, (10.0, 10.0, 0.0)), (TIEPOINT, 12, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0)),
        (34735, 3, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)),
    ):  # fmt: skip
        tags.append((tag, kind, value))
    head = struct.pack('<2sHIH', b'II', 42, 8, len(tags))
    place, body, beyond = 8 + 2 + 12 * len(tags) + 4, b'', b''
    for tag, kind, value in tags:
        if isinstance(value, tuple):
            at = place + len(beyond)
            body += struct.pack('<HHII', tag, kind, len(value), at)
            beyond += struct.pack(f'<{len(value)}{"d" if kind == 12 else "H"}', *value)
        else:
            body += struct.pack('<HHII', tag, kind, 1, value)
    path.write_bytes((head + body + bytes(4) + beyond).ljust(538, b'\0'))
    return path


def test_declared_sizes_are_looked_at_first(tmp_path: Path) -> None:
    huge_tile(tmp_path / 'huge.tif')
    assert (tmp_path / 'huge.tif').stat().st_size < 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r'huge\.tif.*MiB each.*512 MiB.*-of COG'):
        SceneDataset(tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 2**18  # KiB: 256 MiB
    write(tmp_path / 'a.tif', noise(1, 64, 64))
    with pytest.warns(UserWarning, match=r'skipped .*huge\.tif'):
        assert len(SceneDataset(tmp_path, skip_unreadable=True)) == 1


def local_crs() -> str:
    return 'LOCAL_CS["a plan",UNIT["metre",1]]'


def test_all_bad_files_are_told_at_once_and_skipped(tmp_path: Path) -> None:
    # The first file is no measure of the others
    write(tmp_path / '0_plan.tif', noise(3, 64, 64), crs=local_crs())
    for name in ('a', 'b', 'c'):
        write(tmp_path / f'{name}.tif', noise(3, 64, 64))
    write(tmp_path / '0_bands.tif', noise(4, 64, 64))
    write(tmp_path / 'nowhere.tif', noise(3, 64, 64), crs=None)
    write(tmp_path / 'complex.tif', noise(3, 64, 64, dtype='complex64'))
    (tmp_path / 'text.tif').write_text('text')
    truncate(write(tmp_path / 'cut.tif', noise(3, 256, 256), interleave='band'))
    bad = ['0_bands', '0_plan', 'complex', 'cut', 'nowhere', 'text']
    with pytest.raises(ValueError, match='6 files cannot be used') as error:
        SceneDataset(tmp_path)
    with pytest.warns(UserWarning, match='skipped 6 files') as told:
        dataset = SceneDataset(tmp_path, skip_unreadable=True)
    said = [str(each.message) for each in told if 'skipped' in str(each.message)]
    assert len(said) == 1
    for name in bad:
        assert f'{name}.tif' in str(error.value) and f'{name}.tif' in said[0], name
    assert 'skip_unreadable=True' in str(error.value)
    assert [Path(file).stem for file in dataset.files] == ['a', 'b', 'c']
    assert dataset.crs == 'EPSG:32633' and len(dataset.bands) == 3


def test_alike_reasons_are_told_once(tmp_path: Path) -> None:
    for name in ('a', 'b', 'c'):
        write(tmp_path / f'{name}.tif', noise(1, 64, 64), crs=None)
    with pytest.raises(ValueError, match=r'a\.tif.*b\.tif.*c\.tif') as error:
        SceneDataset(tmp_path)
    assert str(error.value).count('file_crs=') == 1


def test_data_sets_of_a_netcdf_are_named(tmp_path: Path) -> None:
    tif = write(tmp_path / 'a.tif', noise(2, 64, 64))
    rasterio.shutil.copy(tif, tmp_path / 'a.nc', driver='netCDF')
    with pytest.raises(ValueError, match=r'a\.nc.*a\.nc":Band1.*Band2.*rio convert'):
        SceneDataset(tmp_path / 'a.nc')
    one = write(tmp_path / 'one.tif', noise(1, 64, 64))
    rasterio.shutil.copy(one, tmp_path / 'one.nc', driver='netCDF')
    assert len(SceneDataset(tmp_path / 'one.nc')) == 1


def points() -> list[GroundControlPoint]:
    corners = ((0, 0), (0, 64), (64, 0), (64, 64))
    return [GroundControlPoint(r, c, 10 + c / 64, 50 - r / 64) for r, c in corners]


def rpcs() -> RPC:
    return RPC(
        height_off=0, height_scale=1, lat_off=50, lat_scale=1, line_off=32, line_scale=32,
        long_off=10, long_scale=1, samp_off=32, samp_scale=32, err_bias=0, err_rand=0,
        line_den_coeff=[1.0] + [0.0] * 19, line_num_coeff=[0.0, 0.0, 1.0] + [0.0] * 17,
        samp_den_coeff=[1.0] + [0.0] * 19, samp_num_coeff=[0.0, 1.0] + [0.0] * 18,
    )  # fmt: skip


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
@pytest.mark.parametrize(
    ('placed', 'message'),
    [
        ({'gcps': points()}, r'4 ground control points.*gdalwarp -tps -t_srs'),
        ({'rpcs': rpcs()}, r'placed by RPCs.*gdalwarp -rpc -to RPC_DEM='),
        ({}, r'no geotransform.*gdal_translate -a_srs.* -a_ullr'),
    ],
)
def test_no_place(tmp_path: Path, placed: dict, message: str) -> None:
    path = tmp_path / 'a.tif'
    with rasterio.open(
        path, 'w', driver='GTiff', width=64, height=64, count=1, dtype='uint8', crs='EPSG:4326',
        **placed,
    ) as file:  # fmt: skip
        file.write(noise(1, 64, 64))
    for declared in (None, 'EPSG:4326'):
        with pytest.raises(ValueError, match=message):
            SceneDataset(tmp_path, file_crs=declared)
    with pytest.raises(ValueError, match=message):
        open_source(path)


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_points_beside_a_crs(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(1, 64, 64), transform=Affine.identity())
    listed = ''.join(
        f'<GCP Id="" Pixel="{p.col}" Line="{p.row}" X="{p.x}" Y="{p.y}"/>' for p in points()
    )  # fmt: skip
    (tmp_path / 'a.tif.aux.xml').write_text(
        f'<PAMDataset><GCPList Projection="EPSG:4326">{listed}</GCPList></PAMDataset>'
    )
    with rasterio.open(path) as file:
        assert len(file.gcps[0]) == 4
    with pytest.raises(ValueError, match=r'4 ground control points.*gdalwarp -tps'):
        SceneDataset(tmp_path)


@pytest.mark.parametrize('kind', ['scenes', 'masks', 'change', 'lists'])
def test_pictures_without_a_place(tmp_path: Path, kind: str) -> None:
    for folder in ('images', 'masks', 'after'):
        (tmp_path / folder).mkdir()
        Image.new('RGB', (64, 64)).save(tmp_path / folder / 'a.png')
    folder = str(tmp_path / 'images')
    data = {
        'scenes': lambda: SceneDataset(folder),
        'masks': lambda: SegmentationDataModule(folder, str(tmp_path / 'masks')),
        'change': lambda: ChangeDataModule(str(tmp_path)),
        'lists': lambda: ChangeDataModule(
            before=folder, after=str(tmp_path / 'after'), masks=str(tmp_path / 'masks')
        ),
    }
    with pytest.raises(ValueError, match=r'pictures such as .*a\.png.*-a_ullr'):
        made = data[kind]()
        made.setup('fit')


LISTENING: list[socket.socket] = []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Counts those who call at ``LISTENING[0]``; no one answers, GDAL gives up after a second."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    for name in ('GDAL_HTTP_TIMEOUT', 'GDAL_HTTP_CONNECTTIMEOUT'):
        monkeypatch.setenv(name, '1')
    listening = socket.socket()
    listening.bind(('127.0.0.1', 0))
    listening.listen(100)
    listening.setblocking(False)
    LISTENING[:] = [listening]

    def count() -> int:
        number = 0
        while True:
            try:
                listening.accept()[0].close()
                number += 1
            except BlockingIOError:
                return number

    yield count
    listening.close()


def address() -> str:
    return f'http://127.0.0.1:{LISTENING[0].getsockname()[1]}'


def vrt(size: int = 100) -> str:
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>EPSG:32633</SRS>'
        '<GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform>'
        '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>'
        f'/vsicurl/{address()}/x.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        '</VRTRasterBand></VRTDataset>'
    )


def wms() -> str:
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address()}/${{z}}/${{x}}/${{y}}.png</ServerUrl>'
        '</Service><DataWindow><UpperLeftX>5e5</UpperLeftX><UpperLeftY>5e6</UpperLeftY>'
        '<LowerRightX>501000</LowerRightX><LowerRightY>4999000</LowerRightY><SizeX>100</SizeX>'
        '<SizeY>100</SizeY><TileLevel>0</TileLevel></DataWindow><Projection>EPSG:32633</Projection>'
        '<BandsCount>1</BandsCount></GDAL_WMS>'
    )


def overview(url: str) -> str:
    return (
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
        f'{url}</MDI></Metadata></PAMDataset>'
    )


def tagged(path: Path, size: int) -> None:
    write(path, noise(1, size, size))
    with rasterio.open(path, 'r+') as file:
        file.update_tags(ns='OVERVIEWS', OVERVIEW_FILE=f'/vsicurl/{address()}/x.tif')


#: What is in a file called a.tif, or beside it.
TRAPS: dict[str, Callable[[Path], object]] = {
    'vrt': lambda folder: (folder / 'a.tif').write_text(vrt()),
    'wms': lambda folder: (folder / 'a.tif').write_text(wms()),
    'overviews of vrt': lambda folder: (folder / 'a.tif.ovr').write_text(vrt(50)),
    'OVERVIEWS of vrt': lambda folder: (folder / 'A.TIF.Ovr').write_text(vrt(50)),
    'overviews of wms': lambda folder: (folder / 'a.tif.ovr').write_text(wms()),
    'mask of vrt': lambda folder: (folder / 'a.tif.msk').write_text(vrt()),
    'overviews of overviews': lambda folder: [
        write(folder / 'a.tif.ovr', noise(1, 50, 50)),
        (folder / 'a.tif.ovr.ovr').write_text(vrt(25)),
    ],
    'mask of overviews': lambda folder: [
        write(folder / 'a.tif.ovr', noise(1, 50, 50)),
        (folder / 'a.tif.ovr.msk').write_text(vrt(50)),
    ],
    'notes': lambda folder: (folder / 'a.tif.aux.xml').write_text(
        overview(f'/vsicurl/{address()}/x.tif')
    ),
    'notes of overviews': lambda folder: [
        write(folder / 'a.tif.ovr', noise(1, 50, 50)),
        (folder / 'a.tif.ovr.aux.xml').write_text(overview(f'{address()}/x.tif')),
    ],
    'tags': lambda folder: tagged(folder / 'a.tif', 100),
    'tags of overviews': lambda folder: tagged(folder / 'a.tif.ovr', 50),
}

#: Everything in the package that opens files of a user's folder.
OPENERS: dict[str, Callable[[Path], object]] = {
    'scenes': lambda folder: SceneDataset(folder)[
        Chip((0,), 0, 0, 64, 64)
    ],
    'validity': lambda folder: SceneDataset(folder, zero_is_nodata=True).validity(0, 20),
    'masks': lambda folder: MaskDataset(folder)[Chip((0,), 0, 0, 64, 64)],
    'change': lambda folder: ChangePairs(
        before=folder, after=folder, masks=folder
    ).validity(0),
    'map': lambda folder: open_source(folder / 'a.tif').read(0, 0, 64),
    'images': lambda folder: read_image(folder / 'a.tif'),
    'oriented': lambda folder: OrientedChips(
        [(folder / 'a.tif', Path(os.devnull))], ['x'], 64, 0
    ),
    'detection': lambda folder: CocoDetection(folder, folder / 'boxes.json', size=20)[0],
}  # fmt: skip


@pytest.mark.allow_hosts(['127.0.0.1'])
@pytest.mark.parametrize('opener', OPENERS)
@pytest.mark.parametrize('trap', TRAPS)
def test_a_folder_reaches_no_network(
    tmp_path: Path, asked: Callable[[], int], trap: str, opener: str
) -> None:
    write(tmp_path / 'a.tif', noise(1, 100, 100))
    (tmp_path / 'boxes.json').write_text(
        '{"images": [{"id": 1, "file_name": "a.tif"}], "annotations": [], '
        '"categories": [{"id": 1, "name": "x"}]}'
    )
    TRAPS[trap](tmp_path)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r'a\.tif'):
        warnings.simplefilter('ignore')
        OPENERS[opener](tmp_path)
    assert asked() == 0


@pytest.mark.allow_hosts(['127.0.0.1'])
def test_a_vrt_is_read_where_it_is_named(
    tmp_path: Path, asked: Callable[[], int]
) -> None:
    path = write(tmp_path / 'a.tif', noise(1, 64, 64))
    (tmp_path / 'evil.vrt').write_text(vrt())
    for paths in (tmp_path, str(tmp_path / '*')):
        with pytest.warns(UserWarning, match=r'left out .*evil\.vrt.* name it'):
            assert SceneDataset(paths).files == [str(path)]
    assert asked() == 0
    rasterio.shutil.copy(path, tmp_path / 'good.vrt', driver='VRT')
    for named in (tmp_path / 'good.vrt', str(tmp_path / 'goo*.vrt')):
        sample = SceneDataset(named)[Chip((0,), 0, 0, 64, 64)]
        assert (sample['image'].numpy() == noise(1, 64, 64)).all()
    # Another file may not pass for one by its content
    os.rename(tmp_path / 'good.vrt', tmp_path / 'good.xyz')
    with pytest.raises(ValueError, match=r'is none of GTiff, .*gdal_translate'):
        SceneDataset(tmp_path / 'good.xyz')


def test_honest_files_beside_a_scene_are_read(tmp_path: Path) -> None:
    array = noise(2, 200, 200)
    path = write(tmp_path / 'a.tif', array)
    (tmp_path / 'a.tif.aux.xml').write_text(
        '<PAMDataset><PAMRasterBand band="1"><Description>red</Description><NoDataValue>7'
        '</NoDataValue></PAMRasterBand><PAMRasterBand band="2"><Description>nir</Description>'
        '</PAMRasterBand></PAMDataset>'
    )
    rasterio.shutil.copy(path, tmp_path / 'b.tif', driver='GTiff')
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True):
        with rasterio.open(tmp_path / 'b.tif', 'r+') as file:
            file.write_mask(np.eye(200, dtype=bool))
        with rasterio.open(tmp_path / 'b.tif', 'r+') as file:
            file.build_overviews([2, 4])
    assert (tmp_path / 'b.tif.msk').exists() and (tmp_path / 'b.tif.ovr').exists()
    dataset = SceneDataset(tmp_path)
    assert dataset.bands == ('red', 'nir')
    first = dataset[Chip((0,), 0, 0, 200, 200)]['valid'].numpy()
    assert (first == (array[0] != 7)).all() and not first.all()
    second = dataset[Chip((1,), 0, 0, 200, 200)]['valid'].numpy()
    assert not second[~np.eye(200, dtype=bool)].any() and second.any()


def test_no_program_is_started_by_a_picture(tmp_path: Path) -> None:
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')
    os.rename(tmp_path / 'a.eps', tmp_path / 'a.jpg')
    with pytest.raises(
        ValueError, match=r'a\.jpg.*cannot be read as an image \(cannot identify'
    ):
        read_image(tmp_path / 'a.jpg')


def test_jp2_with_a_box_without_end_is_read_at_once(tmp_path: Path) -> None:
    # Where all that GDAL knows of the file is listed, it was in there for more than 100 s
    path = tmp_path / 'scene.jp2'
    write(tmp_path / 'sound.tif', noise(2, 64, 64))
    rasterio.shutil.copy(tmp_path / 'sound.tif', path, driver='JP2OpenJPEG')
    data = path.read_bytes()
    assert data.count(b'\0\0\0\x19lbl gml') == 1
    path.write_bytes(data.replace(b'\0\0\0\x19lbl gml', b'\0\0\0\0\x03bl gml'))
    # In a process of its own, which can be ended
    reads = (
        'from cmid_geo.datasets.rasters import describe_raster; '
        f'print(describe_raster({str(path)!r}).bands)'
    )
    done = subprocess.run(
        [sys.executable, '-c', reads],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "('B1', 'B2')\n", done.stderr
