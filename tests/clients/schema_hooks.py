"""What tests/clients/schema.py adds to schemathesis: jobs that end soon, and what the contract has beside the schema."""
import schemathesis
from schemathesis.specs.openapi.checks import response_schema_conformance

# Larger ones mean hours of work, which is no error. So large that a job does not fit into memory stay as they are.
MOST = {"num_inference_steps": 3, "num_images_per_prompt": 2, "width": 200, "height": 200}
HOPELESS = 1 << 24

# 500: the machine is too small for the picture; or what Python would have raised, as for loras that hold null or a seed that
# does not fit.
SERVER_ERRORS = {"Out of memory error. Try reducing %s resolution." % of for of in (
    "output image", "input image", "input or output video")} | {
        name + " pipeline error." for name in ("Text-to-image", "Image-to-image", "Image-to-video", "Upscale")}


def soon(name, value):
    """VALUE, or one that is computed soon, of the same type: forms send text."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return value
    if isinstance(value, bool) or number <= MOST[name] or (name in ("width", "height") and number > HOPELESS):
        return value
    return type(value)(1 + number % MOST[name])


@schemathesis.hook
def before_call(context, case, kwargs):
    if isinstance(case.body, dict):
        case.body.update({name: soon(name, case.body[name]) for name in MOST if name in case.body})


@schemathesis.check
def server_errors_are_the_contracts(ctx, response, case):
    if response.status_code >= 500:
        message = response.json()["detail"]["msg"]
        assert message in SERVER_ERRORS, message


@schemathesis.check
def replies_are_as_described(ctx, response, case):
    """But for the one detail that is a string: of a form that cannot be read, as FastAPI has it."""
    if response.status_code == 400 and response.json() == {"detail": "There was an error parsing the body"}:
        return None
    return response_schema_conformance(ctx, response, case)
