"""Amazon SageMaker: what runs in its containers (``python -m medad_serve.sagemaker``), and what asks for them.

One image trains and serves; it holds nothing but this package::

    FROM python:3.11-slim
    RUN pip install 'medad-serve[aws]'
    ENTRYPOINT ["python", "-m", "medad_serve.sagemaker"]

SageMaker runs it with the argument ``train`` or ``serve``. ``medad-serve sagemaker train`` names the entry point
itself, so that a training takes any image with the package; an endpoint cannot, and takes this one or TorchServe's
own image with the package added. In the training toolkit's script mode the program is one line:
``import runpy; runpy.run_module("medad_serve.sagemaker", run_name="__main__")``.
"""
