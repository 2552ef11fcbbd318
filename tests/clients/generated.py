"""The client that openapi-python-client makes of openapi.json, against real daemons of every pipeline. Called by
scripts/check_clients.sh, which generates it and sets the path of Python's modules."""
import io
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from daemon import TOP, Count, Daemon, video_shelf  # noqa: E402
from runner_client import picture_of  # noqa: E402
from test_clients import png  # noqa: E402

from latentd_client import AuthenticatedClient, Client, models  # noqa: E402
from latentd_client.api.default import hardware_info, hardware_stats, health, version  # noqa: E402
from latentd_client.api.generate import gen_image_to_image, gen_image_to_video, gen_text_to_image  # noqa: E402
from latentd_client.types import File  # noqa: E402


def upload(width, height):
    return File(payload=io.BytesIO(png(width, height)), file_name="in.png", mime_type="image/png")


def sizes(media):
    return [picture_of(m.url)[:2] for m in media]


def lookups(client, pipeline):
    assert health.sync(client=client).status == models.HealthCheckStatus.OK
    assert version.sync(client=client).pipeline == hardware_info.sync(client=client).pipeline == pipeline
    assert hardware_stats.sync(client=client).gpu_stats.to_dict() == {}


def text_to_image(url):
    client = Client(base_url=url)
    lookups(client, "text-to-image")
    body = models.TextToImageParams(prompt="a cat", width=64, height=48, num_inference_steps=2, num_images_per_prompt=2, seed=7)
    made = gen_text_to_image.sync(client=client, body=body)
    assert isinstance(made, models.ImageResponse) and sizes(made.images) == [(64, 48)] * 2, made
    assert [m.seed for m in made.images] == [7, 8] and made.images[0].nsfw is False
    body.prompt = ""
    refused = gen_text_to_image.sync_detailed(client=client, body=body)
    assert refused.status_code == 400 and refused.parsed.detail.msg == "Prompt must be provided.", refused
    body.prompt, body.width = "a cat", "wide"
    wrong = gen_text_to_image.sync_detailed(client=client, body=body)
    assert wrong.status_code == 422 and wrong.parsed.detail[0].loc == ["body", "width"], wrong


def token(url):
    body = models.TextToImageParams(prompt="a cat", width=64, height=48, num_inference_steps=1)
    refused = gen_text_to_image.sync_detailed(client=Client(base_url=url), body=body)
    assert refused.status_code == 401 and refused.parsed.detail.msg == "Invalid bearer token.", refused
    made = gen_text_to_image.sync(client=AuthenticatedClient(base_url=url, token="s"), body=body)
    assert sizes(made.images) == [(64, 48)], made


def image_to_image(url):
    body = models.BodyGenImageToImage(prompt="a cat", image=upload(64, 48), strength=0.5, num_inference_steps=4, seed=1)
    made = gen_image_to_image.sync(client=Client(base_url=url), body=body)
    assert sizes(made.images) == [(64, 48)], made


def image_to_video(url):
    body = models.BodyGenImageToVideo(image=upload(64, 48), width=64, height=48, num_inference_steps=2, seed=1)
    made = gen_image_to_video.sync(client=Client(base_url=url), body=body)
    assert len(made.frames) == 1 and sizes(made.frames[0]) == [(64, 48)] * 6, made


def upscale(url):
    from latentd_client.api.generate import gen_upscale

    body = models.BodyGenUpscale(prompt="a cat", image=upload(24, 32), num_inference_steps=2, seed=1)
    made = gen_upscale.sync(client=Client(base_url=url), body=body)
    assert sizes(made.images) == [(96, 128)], made


def main():
    count = Count()

    def against(settings, test):
        with Daemon(**settings) as daemon:
            count.test("generated client: " + test.__name__, test, daemon.url)

    against({}, text_to_image)
    against({"AUTH_TOKEN": "s"}, token)
    against({"PIPELINE": "image-to-image", "MODEL_ID": "latentd/emoji"}, image_to_image)
    with tempfile.TemporaryDirectory(prefix="latentd-clients-") as folder:
        video_shelf(folder)
        against({"PIPELINE": "image-to-video", "MODEL_ID": "latentd/svd", "MODEL_DIR": folder}, image_to_video)
    if "/upscale" in json.loads((TOP / "openapi.json").read_text())["paths"]:
        against({"PIPELINE": "upscale", "MODEL_ID": "latentd/upscaler", "MODEL_DIR": str(TOP / "tests/golden/data/upscale")}, upscale)
    return count.end()


if __name__ == "__main__":
    sys.exit(main())
