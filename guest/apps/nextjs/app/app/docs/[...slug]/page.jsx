export default async function Docs({ params }) {
  const { slug } = await params;
  return <h1 id="title">docs of {slug.map(decodeURIComponent).join(" | ")}</h1>;
}
