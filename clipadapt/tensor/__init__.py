"""What both packages do with torch and the Hugging Face libraries."""
