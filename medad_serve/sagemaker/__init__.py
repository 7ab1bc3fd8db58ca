"""Amazon SageMaker: what runs in its containers (``python -m medad_serve.sagemaker``), and what asks for them."""
