export default function About() {
  return <h1 id="title">about page</h1>;
}
